# One command each, the same locally and in CI.

# install for development
install:
    pip install -c constraints.txt -e '.[dev]'

# lint, types, import contracts
check:
    ruff check .
    ruff format --check .
    ty check
    lint-imports

format:
    ruff check --fix .
    ruff format .

test *args:
    pytest {{args}}

demo *args:
    steval demo {{args}}

# what CI runs
ci:
    bash .ci/run

# both images, built and tried without a container engine: as root, about fifteen minutes and 10 GB; CI leaves it out
images directory:
    bash deploy/build_without_daemon.sh {{directory}}
