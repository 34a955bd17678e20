"""Run while an image is built: stops the build where torch is not of the kind that was asked for (`cpu` or `cuda`)."""

import sys

import torch

wanted = sys.argv[1]
found = "cpu" if torch.version.cuda is None else "cuda"
if wanted != found:
    sys.exit(
        f"a {wanted} build of torch was asked for, and the package index gave a {found} build ({torch.__version__}). Give the "
        "index with the right wheels by the build argument TORCH_INDEX, or ask for the other kind with ACCELERATOR"
    )
sys.stdout.write(f"torch {torch.__version__}: {found} build\n")
