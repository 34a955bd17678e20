"""`/score`: submit, status, result, files, removal."""

from starlette.routing import Route


def routes() -> list[Route]:
    """The routes below `/score`."""
    return []
