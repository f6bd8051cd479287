"""The managers' pages: campaigns, how they go, what people disagree about, what an erasure did, people, jobs and rounds."""

from ui.manage.page import HEAD, build_manage
from ui.manage.routes import add_routes

__all__ = ["HEAD", "add_routes", "build_manage"]
