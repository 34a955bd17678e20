"""README and docs against the program: every command in them is run by a test, or parsed and excused; links lead somewhere."""

import ast
import re
from functools import partial
from pathlib import Path

import pytest
import typer

from steval.cli.app import COMMANDS, app
from steval.cli.help import OPTIONS
from steval.errors import ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import recipe_names, recipe_path
from support.documented import PAGES, ROOT, RUN, SHELLS, Documented, blocks, documented

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}(_[A-Z]+)*\b|…|\.\.\.|\[|\b[A-Z]\b")
"""What stands for a word of the reader's."""

RUN_BY = {
    "README.md": "tests/cli/test_finetuning_page.py::test_the_readme_s_way_from_a_screen_to_a_score",
    "docs/coming-from-arc-state.md": "tests/workflows/test_coming_from_arc_state.py::test_every_command_of_the_page_runs",
    "docs/deployment.md": "tests/batch/test_deployment_page.py::test_every_command_of_the_page_runs",
    "docs/finetuning.md": "tests/cli/test_finetuning_page.py::test_every_command_of_the_page_runs",
    "docs/prediction.md": "tests/predictor/test_prediction_page.py::test_commands",
    "docs/scoring.md": "tests/workflows/test_scoring_page.py::test_every_command_of_the_page_runs",
    "docs/service.md": "tests/service/test_service_page.py::test_every_command_of_the_page_runs",
    "docs/vcc2026.md": "tests/workflows/test_vcc2026_page.py::directory",
}
"""Page → the test that runs its `sh` blocks, line by line as they stand."""
PYTHON_RUN_BY = {
    "README.md": "tests/test_notebook.py::test_the_python_of_the_readme_runs",
    "client/README.md": "tests/service/test_light_client.py::test_the_python_of_the_readme_runs",
    "docs/prediction.md": "tests/predictor/test_prediction_page.py::test_python",
    "docs/scoring.md": "tests/workflows/test_scoring_page.py::test_the_python_of_the_page_runs",
    "docs/service.md": "tests/service/test_service_page.py::test_the_python_of_the_page_runs",
}
"""Page → the test that runs its `python` blocks."""
NOT_RUN = {
    "pip install": "installs into the environment of the tests; CI installs by the README's own line",
    "docker ": "needs a container engine",
    "sudo deploy/build_without_daemon.sh": "builds images for minutes, as root; tests/batch/test_images.py checks its parts",
    "bentoml build": "tests/service/test_process.py builds the bento and serves it; an image needs a container engine",
    "STEVAL_CHECKPOINT=best-val.safetensors bentoml serve": "tests/service/test_process.py serves a bento",
    "kubectl ": "needs a Kubernetes cluster; tests/batch/test_deploy.py checks the manifests",
    "torchrun ": "takes more GPUs than there are; tests/trainer/test_several_processes.py runs torchrun with two processes",
    "srun ": "needs SLURM",
    "steval batch night.yaml --engine ray": "tests/batch/test_engines.py runs a batch on Ray",
    "steval load https": "needs a service; tests/service/test_load.py runs it against one",
    "OTEL_EXPORTER_OTLP_ENDPOINT=": "needs a collector; tests/service/test_tracing.py has one",
    "steval predict --url": "needs a service; tests/service/test_remote.py runs it against one",
    "steval score preds.h5ad --real real.h5ad --profile vcc2026": "needs counts; tests/evaluator/test_counts.py scores them",
    "curl -H 'Authorization": "the key is the reader's; tests/service/test_keys.py asks with keys",
    "python benchmarks/": "measures for minutes",
    "bash benchmarks/gpu/run.sh": "needs a GPU; tests/test_gpu_script.py runs it on the CPU",
    "OMP_NUM_THREADS=1 python -m pytest": "these are the tests",
    "STEVAL_CELL_EVAL2_PYTHON=": "these are the tests",
}
"""How a command begins that no test runs as it stands → why."""


def in_blocks() -> list[Documented]:
    return [one for page in PAGES for one in documented(page) if one.language != "inline"]


def excuse(one: Documented) -> str | None:
    return next((start for start in NOT_RUN if one.line.startswith(start)), None)


def defined_in(test: str) -> tuple[str, set[str]]:
    """The text of a test's module and the functions in it."""
    text = (ROOT / test.split("::")[0]).read_text(encoding="utf-8")
    return text, {one.name for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef)}


def test_every_command_in_a_block_is_run_or_excused():
    """The README's two commands are whole lines of their own, see `test_the_readme_has_the_two_commands`."""
    missing = [
        f"{one.page}: {one.line!r} in a block {one.language or 'without a language'}: mark the block `{RUN}` on a page of RUN_BY, "
        "or say in NOT_RUN why no test runs it"
        for one in in_blocks()
        if not (one.language == RUN and one.page in RUN_BY) and excuse(one) is None
    ]
    assert missing == []


def test_what_is_excused_is_still_there():
    lines = [one.line for one in in_blocks()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize(("page", "test"), sorted([*RUN_BY.items(), *PYTHON_RUN_BY.items()]))
def test_the_tests_that_run_pages_are_there(page: str, test: str):
    text, functions = defined_in(test)
    assert test.split("::")[1] in functions
    assert Path(page).name in text, f"{test} does not read {page}"


def test_every_block_of_python_is_run():
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page, "python")}
    assert pages == set(PYTHON_RUN_BY)


def test_excuses_that_name_a_test_name_one_that_is_there():
    named = [place for reason in NOT_RUN.values() for place in re.findall(r"tests/\S+\.py", reason)]
    assert named and [place for place in named if not (ROOT / place).is_file()] == []


def options_of(command: str) -> dict[str, list[str]]:
    """Option → the values that it takes; empty where it takes any."""
    group = typer.main.get_command(app)
    names = [name for one in group.commands[command].params for name in one.opts + one.secondary_opts]
    return {name: OPTIONS[name].choices if name in OPTIONS else [] for name in names}


def steval_words(one: Documented) -> list[str]:
    """What follows `steval` in a command line, `torchrun … -m steval` among them; empty where it is none of ours."""
    words = one.words
    if "steval" not in words or words[0] in ("docker", "bentoml"):
        return []
    rest = words[words.index("steval") + 1 :]
    return [word for word in rest if word != "--quiet"]


def problems_of(one: Documented) -> list[str]:
    """A command, option or choice that does not exist; where no word stands for the reader's own, what the parser says."""
    name, *rest = steval_words(one)
    if name.startswith("-"):
        return []
    if name not in COMMANDS:
        return [f"no command {name!r}"]
    known = options_of(name) | {"--help": [], "--debug": []}
    found = []
    for position, word in enumerate(rest):
        option, _, value = word.partition("=")
        if not re.match(r"^--?[a-z]", word):
            continue
        if option not in known:
            found.append(f"no option {option!r}")
            continue
        value = value or (rest[position + 1] if position + 1 < len(rest) else "")
        if known[option] and not PLACEHOLDER.search(value) and value not in known[option]:
            found.append(f"{option} takes {', '.join(known[option])}, not {value!r}")
    if not found and one.language != "inline" and not PLACEHOLDER.search(one.line):
        found += parsed(name, rest)
    return found


def parsed(name: str, arguments: list[str]) -> list[str]:
    """What the command line's own parser has against the arguments."""
    try:
        typer.main.get_command(app).commands[name].make_context(name, list(arguments))
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            raise
        return [getattr(error, "message", "") or str(error)]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_options_and_choices_in_the_docs_exist(page: Path):
    lines = [one for one in documented(page) if steval_words(one)]
    assert [f"{one.line!r}: {what}" for one in lines for what in problems_of(one)] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("steval bake cells.h5ad", "no command 'bake'"),
        ("steval score a.h5ad --reel b.h5ad", "no option '--reel'"),
        ("steval predict m.safetensors -o p.h5ad --output median", "--output takes cells, mean, not 'median'"),
        ("steval predict m.safetensors -o p.h5ad --cells many", "valid integer"),
        ("torchrun --nproc-per-node=2 -m steval finetune a.yaml --fast", "no option '--fast'"),
    ],
)
def test_what_is_wrong_in_a_command_is_found(line: str, says: str):
    assert any(says in problem for problem in problems_of(Documented("page.md", line, "bash")))


def settings_of(text: str) -> list[str]:
    """What `--set` is given in a text, and `a.b=c` alone in a sentence."""
    given = re.findall(r"--set '([^']+)'|--set ([\w.]+=[^\s`),;]+)", text)
    alone = re.findall(r"`([a-z]\w*(?:\.\w+)+=[^`]*)`", text)
    return [quoted or bare for quoted, bare in given] + alone


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((ROOT / "steval" / "trainer" / "recipes").glob("*.yaml"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_documented_setting_is_one_of_some_recipe(page: Path):
    wrong = [
        setting
        for setting in settings_of(page.read_text(encoding="utf-8"))
        if not PLACEHOLDER.search(setting.replace("[", "", 1)) and not any(map(partial(takes, setting), recipe_names()))
    ]
    assert wrong == []


def takes(setting: str, recipe: str) -> bool:
    try:
        FinetuneConfig.load(recipe_path(recipe), [setting])
    except ConfigError:
        return False
    return True


def test_a_setting_that_no_recipe_has_is_found():
    text = "`phases.lora.trains=[]`, --set 'phases.0.trains=[]' and (--set sets.sise=4)"
    given = settings_of(text)
    assert given == ["phases.0.trains=[]", "sets.sise=4", "phases.lora.trains=[]"]
    assert [any(takes(one, recipe) for recipe in recipe_names()) for one in given] == [True, False, False]


def test_scripts_in_the_docs_exist_with_their_options():
    """`python benchmarks/score.py --size medium`: the file, and each option in its text."""
    problems = []
    for page in PAGES:
        for one in documented(page):
            scripts = [word for word in one.words if re.fullmatch(r"(benchmarks|deploy|\.ci)/\S*(\.py|\.sh|run)", word)]
            for script in scripts:
                if not (ROOT / script).is_file():
                    problems.append(f"{one.page}: no {script}")
                    continue
                text = (ROOT / script).read_text(encoding="utf-8")
                options = re.findall(r"(?<=\s)(--[a-z][a-z-]*)", one.line.split(script)[1])
                problems += [f"{one.page}: {script} has no {option}" for option in options if option not in text]
    assert problems == []


def test_commands_are_found_wherever_they_stand(tmp_path):
    page = ROOT / "docs" / "none.md"
    text = (
        "# A page\n\n```sh\nsteval demo \\\n  --out x   # a comment\n```\n\n    $ python benchmarks/a.py --size small\n\n"
        "In a sentence `steval doctor run`, `--out`, `steval`.\n\n```\nfree text\nFOO=1 pip install x\n```\n"
    )

    class Given:
        read_text = staticmethod(lambda encoding: text)
        relative_to = staticmethod(page.relative_to)

    assert [(one.language, one.line) for one in documented(Given)] == [
        ("sh", "steval demo --out x"),
        ("", "FOO=1 pip install x"),
        ("", "python benchmarks/a.py --size small"),
        ("inline", "steval doctor run"),
    ]
    assert RUN in SHELLS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"`steval {command}" not in readme] == []


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, ending in (("demo-command", "&& steval demo"), ("test-command", "&& pytest")):
        block = re.search(rf"<!-- {marker} -->\n```sh\n(.+)\n```", readme)
        assert block is not None
        assert block.group(1).startswith("pip install -c constraints.txt") and block.group(1).endswith(ending)
