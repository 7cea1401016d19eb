"""Pages for people at ``/``."""

from fastapi import APIRouter
from starlette.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> RedirectResponse:
    """Lead to the documentation of the API."""
    return RedirectResponse("/docs")
