#!/usr/bin/env python3
"""Entry point of every image, BentoML's or the Containerfile's. It needs no shell.

serve [CKPT] [OPTIONS]   the HTTP service on all addresses; CKPT defaults to $STEVAL_CHECKPOINT, keys come from
                         $STEVAL_API_KEY_FILE, or $STEVAL_NO_AUTH=true opens it to everybody
score, predict, batch... any other steval command, with its arguments
healthy                  ends with 0 where the service of this container is ready
anything else            is run as it is (python, ray)
"""

import os
import sys
import tempfile
import urllib.request
from pathlib import Path

COMMANDS = (
    "demo", "prepare", "init", "finetune", "sweep", "predict", "score", "load", "metrics", "pack", "batch", "compare", "doctor",
    "calibrate", "inspect", "convert", "merge", "push",
)  # fmt: skip
"""Those of steval but `serve`; a test compares them with the program's."""
BINARIES = str(Path(sys.executable).parent)


def main(arguments: list[str]) -> None:
    """Become the program that `arguments` ask for."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("serve", [])
    os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), BINARIES)))
    if command == "healthy":
        require_ready(f"http://127.0.0.1:{port()}/readyz")
    elif command == "serve":
        keep_bentoml_at_home()
        become(["steval", "serve", *serve_options(rest), *rest])
    elif command in COMMANDS or command.startswith("-"):
        become(["steval", *arguments])
    else:
        become(arguments)


def serve_options(rest: list[str]) -> list[str]:
    """What the environment says, as options of `steval serve`; those of `rest` come after them and win."""
    options = ["--host", "0.0.0.0", "--port", port()]
    key_file, checkpoint = os.environ.get("STEVAL_API_KEY_FILE"), os.environ.get("STEVAL_CHECKPOINT")
    if key_file:
        options += ["--api-key-file", key_file]
    elif os.environ.get("STEVAL_NO_AUTH") == "true":
        options.append("--no-auth")
    is_named = bool(rest) and rest[0] != "" and not rest[0].startswith("-")
    return [checkpoint, *options] if checkpoint and not is_named else options


def port() -> str:
    """Where the service of this container listens."""
    return os.environ.get("PORT") or "3000"


def require_ready(url: str) -> None:
    """End with 1 and a sentence where `url` does not answer 200."""
    try:
        urllib.request.urlopen(url, timeout=4).close()
    except OSError as error:
        sys.exit(f"{url}: {error}")


def keep_bentoml_at_home() -> None:
    """BentoML wants to write there; another user (docker run --user) or a read-only root file system cannot: a new directory."""
    user_home = os.environ.get("HOME")
    home = os.environ.get("BENTOML_HOME") or (f"{user_home}/bentoml" if user_home else None)
    if home is None or not can_write(Path(home) / "bentos"):
        os.environ["BENTOML_HOME"] = tempfile.mkdtemp()


def can_write(directory: Path) -> bool:
    """Whether `directory` is there, or could be made, and takes files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def become(command: list[str]) -> None:
    """Replace this process, so that signals reach the program itself."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(
            f"{command[0]}: {error.strerror}; the first argument is a steval command ({', '.join(COMMANDS)}, serve) or a program"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
