"""The managers' page, put together from its tabs."""

import gradio as gr

from hfi import __version__
from hfi.store.session import Engine
from hfi.workspace import Workspace
from ui.manage import asking, comparing, deciding, people, watching, working
from ui.manage.office import Office, Who
from ui.manage.parts import Html, e, panel

HEAD = f"""<link rel="stylesheet" href="/assets/manage.css?v={__version__}">
<script defer src="/assets/manage.js?v={__version__}"></script>"""


def build_manage(workspace: Workspace, engine: Engine, who: Who) -> gr.Blocks:
    """The page for managers. `who` tells who sent a request, such as `Identity.who`; it is asked anew in every handler. Nothing of the
    workspace is in the page itself, all of it comes from handlers. Its images and reports: `add_routes`."""
    office = Office(workspace, engine, who)
    with gr.Blocks(title="Manage · hfi", fill_width=True, analytics_enabled=False) as page:
        top = panel("m-top")
        with gr.Tabs(elem_id="m-tabs"):
            tabs = {
                name: gr.Tab(title, id=name, elem_id=f"m-tab-{name}")
                for name, title in (
                    ("watch", "Overview"),
                    ("ask", "Campaigns"),
                    ("decide", "Decide"),
                    ("compare", "Before and after"),
                    ("people", "People"),
                    ("work", "Work"),
                )
            }
            with tabs["watch"]:
                watching.build(office, page, tabs["watch"], [tab for name, tab in tabs.items() if name != "watch"])
            with tabs["ask"]:
                asking.build(office, tabs["ask"])
            with tabs["decide"]:
                deciding.build(office, tabs["decide"])
            with tabs["compare"]:
                comparing.build(office, tabs["compare"])
            with tabs["people"]:
                people.build(office, tabs["people"])
            with tabs["work"]:
                working.build(office, tabs["work"], [tab for name, tab in tabs.items() if name != "work"])
        office.when(page.load, lambda person: _top(person.name), None, top)
    return page


def _top(name: str) -> Html:
    return Html(
        f'<header class="m-top"><span class="m-brand">hfi</span><span class="m-title">Manage</span><nav><a href="/work">Judge</a></nav>'
        f'<span class="m-who">{e(name)}</span></header>'
    )
