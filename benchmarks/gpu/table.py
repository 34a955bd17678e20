"""The results of `run.py` as a table for people."""

from typing import Any


def render(results: dict[str, Any]) -> str:
    """One line for each figure, stage after stage."""
    lines = [f"steval on {results['device']}{' (small: proves the script only)' if results['small'] else ''}"]
    for name, stage in results["stages"].items():
        seconds = f", {stage['seconds']} s" if "seconds" in stage else ""
        lines.append(f"\n{name}: {stage['status']}{seconds}")
        for key, value in stage["results"].items():
            lines += _lines(key, value)
    return "\n".join(lines)


def _lines(key: str, value: Any, indent: str = "  ") -> list[str]:
    if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
        return [f"{indent}{name:42s} {_row(part)}" for name, part in value.items()]
    if isinstance(value, dict):
        return [f"{indent}{key:28s} {_row(value)}"]
    if isinstance(value, list):
        return [f"{indent}{key:28s} {', '.join(map(str, value)) or 'none'}"]
    return [f"{indent}{key:28s} {_text(key, value)}"]


def _row(values: dict[str, Any]) -> str:
    return "  ".join(f"{key} {_text(key, value)}" for key, value in values.items() if not isinstance(value, list))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if key.endswith("FLOPs"):
        return f"{value / 1e12:.3g} T"
    if key.endswith("_Bps"):
        return f"{value / 1e9:.3g} GB/s"
    if key.endswith(("share", "MFU")):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"
