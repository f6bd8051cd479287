"""Who may come in and as what, what they agree to, who is invited, and how much anybody is to look at."""

from dataclasses import fields
from typing import Any

import gradio as gr

from hfi.errors import HfiError, UsageError
from hfi.store import campaigns, overview, people, queries
from hfi.store.models import ROLES
from hfi.store.people import Account
from hfi.store.session import Session, reading, writing
from hfi.store.wellbeing import Wellbeing, set_wellbeing, wellbeing
from ui.manage.office import Office
from ui.manage.parts import Html, ago, chip, e, heading, note, panel, plural, table
from ui.manage.watching import needed, number

LIMITS = {
    "break_minutes": ("A break after minutes", "of work without one"),
    "break_after": ("A break after harmful images", "looked at since the last one"),
    "break_length_minutes": ("Minutes of a break", "1 to 120"),
    "day_minutes": ("Minutes a day at most", "empty: no limit"),
    "day_harmful": ("Harmful images a day at most", "empty: no limit"),
}


def build(office: Office, tab: gr.Tab) -> None:
    heading("People", "Accounts are for signing in; on this computer alone, and as long as there is none, a name is enough.")
    listed = panel("m-accounts")
    said = panel("m-people-said")
    with gr.Row(elem_classes="m-split"):
        with gr.Column(min_width=320):
            heading("Add somebody")
            with gr.Group():
                name = gr.Textbox(label="Name", max_length=80, elem_id="m-new-name")
                password = gr.Textbox(
                    label="Password, 8 characters or more", type="password", max_length=200, elem_id="m-new-password"
                )
                role = gr.Radio(list(ROLES), value="annotator", label="Role", elem_id="m-new-role")
            add = gr.Button("Add", variant="primary", elem_id="m-add-person")
        with gr.Column(min_width=320):
            heading("Change somebody")
            with gr.Group():
                person = gr.Dropdown([], label="Who", elem_id="m-person", allow_custom_value=True)
                other = gr.Textbox(label="New password", type="password", max_length=200, elem_id="m-other-password")
            with gr.Row(elem_classes="m-wrap"):
                set_password = gr.Button("Set password", elem_id="m-set-password", min_width=150)
                swap = gr.Button("Change role", elem_id="m-change-role", min_width=150)
                switch = gr.Button("Switch on or off", elem_id="m-switch", min_width=150)
                out = gr.Button("Sign out everywhere", elem_id="m-sign-out", min_width=190)
            heading("Invite to a campaign", "A campaign of named people lets in those who are invited.")
            with gr.Group():
                guest = gr.Dropdown([], label="Who", elem_id="m-guest", allow_custom_value=True)
                campaign = gr.Dropdown([], label="Campaign", elem_id="m-invite-campaign", allow_custom_value=True)
            invite = gr.Button("Invite", elem_id="m-invite")
    heading(
        "What people agree to",
        "Everybody reads this before their first image. A changed text is a new version, and is asked for once more.",
    )
    text = gr.Textbox(label="Text, in Markdown", lines=12, max_lines=30, max_length=50_000, elem_id="m-consent")
    contact = gr.Textbox(label="Whom to turn to", max_length=200, elem_id="m-contact", info="shown beside it")
    with gr.Row():
        keep = gr.Button("Keep the text", elem_id="m-keep-consent", scale=0, min_width=180)
    heading(
        "How much anybody is to look at",
        "Breaks may be cut short by whoever takes them; limits of a day are overruled by nobody.",
    )
    with gr.Row():
        limits = [
            gr.Textbox(label=label, info=words, max_length=6, elem_id=f"m-limit-{key}") for key, (label, words) in LIMITS.items()
        ]  # fmt: skip
    with gr.Row():
        keep_limits = gr.Button("Keep the limits", elem_id="m-keep-limits", scale=0, min_width=180)
    shown = [listed, person, guest, campaign]

    def begin(manager: Any) -> list[Any]:
        with reading(office.engine) as s:
            agreed, whom, rules = people.consent_text(s), people.contact(s), wellbeing(s)
        values = [getattr(rules, key) for key in LIMITS]
        return [*_shown(office), agreed.body if agreed else "", whom or "", *("" if v is None else str(v) for v in values), ""]

    def create(manager: Any, who: str, word: str, wanted: str) -> list[Any]:
        with writing(office.engine) as s:
            made = people.add_account(s, who, word, wanted)
        return [note(f"{made.annotator.name} may sign in now, as {made.role}.", "m-good"), *_shown(office), "", ""]

    def changed(manager: Any, who: str | None, word: str = "", *, how: str) -> list[Any]:
        with writing(office.engine) as s:
            account = _account(s, who)
            them = account.annotator
            if how == "password":
                people.set_password(s, them.id, word)
                words = f"{them.name} has a new password, and is signed out everywhere."
            elif how == "role":
                people.set_role(s, them.id, "annotator" if account.role == "manager" else "manager")
                words = f"{them.name} is {'an annotator' if account.role == 'manager' else 'a manager'} now."
            elif how == "active":
                people.set_active(s, them.id, not account.active)
                words = f"{them.name} may {'not sign in any more' if account.active else 'sign in again'}."
            else:
                people.sign_out_everywhere(s, them.id)
                words = f"{them.name} is signed out everywhere."
        return [note(words, "m-good"), *_shown(office), ""]

    def bring(manager: Any, who: str | None, where: str | None) -> list[Any]:
        with writing(office.engine) as s:
            them = queries.annotator(s, needed(who, "nobody is chosen: choose who is to judge"))
            found = campaigns.campaign(s, needed(where, "no campaign is chosen: choose one that was made for named people"))
            campaigns.name_participant(s, found.id, them.id)
        words = f"{them.name} may judge in “{found.name}” now."
        words += " Everybody else may, too: it is not a campaign of named people." if found.access == "all" else ""
        return [note(words, "m-good"), *_shown(office)]

    def keep_text(manager: Any, body: str, whom: str) -> str:
        with writing(office.engine) as s:
            before = people.consent_text(s)
            version = people.set_consent_text(s, body)
            people.set_contact(s, whom)
        if before and before.version == version:
            return note("The text is the same as before; nobody is asked anew.", "m-good")
        return note(f"Kept as version {version}: everybody is asked to agree to it before they go on.", "m-good")

    def keep_rules(manager: Any, *values: str) -> str:
        given: dict[str, Any] = {key: _limit(key, value) for key, value in zip(LIMITS, values, strict=True)}
        with writing(office.engine) as s:
            set_wellbeing(s, Wellbeing(**given))
        return note("Kept: the limits hold from the next image on.", "m-good")

    office.follow(tab.select, begin, None, [*shown, text, contact, *limits, said])
    office.when(add.click, create, [name, password, role], [said, *shown, name, password])
    for button, how in ((set_password, "password"), (swap, "role"), (switch, "active"), (out, "out")):
        office.when(button.click, _with(changed, how), [person, other], [said, *shown, other])
    office.when(invite.click, bring, [guest, campaign], [said, *shown])
    office.when(keep.click, keep_text, [text, contact], said)
    office.when(keep_limits.click, keep_rules, limits, said)


def _with(changed: Any, how: str) -> Any:
    def handle(manager: Any, who: str | None, word: str) -> Any:
        return changed(manager, who, word, how=how)

    return handle


def _shown(office: Office) -> list[Any]:
    """The table of accounts, and updates for the lists of accounts, of people, and of campaigns for named people."""
    with reading(office.engine) as s:
        known = people.accounts(s)
        newest = people.consent_text(s)
        everybody = [person for person in queries.annotators(s) if not person.simulated]
        asked = [c for c in overview.fillings(s) if c.access == "named"]
    accounts = [(account.annotator.name, str(account.annotator.id)) for account in known if not account.withdrawn]
    return [
        _table(known, newest.version if newest else None),
        gr.Dropdown(choices=accounts),
        gr.Dropdown(choices=[(person.name, str(person.id)) for person in everybody]),
        gr.Dropdown(choices=[(f"{c.title}: {c.name}", str(c.id)) for c in asked]),
    ]


def _table(known: list[Account], newest: int | None) -> str:
    rows = []
    for account in sorted(known, key=lambda a: a.annotator.name.casefold()):
        state = (
            chip("withdrew")
            if account.withdrawn
            else chip("active", "m-good")
            if account.active
            else chip("switched off", "m-warn")
        )
        agreed = (
            "–" if account.agreed is None else f"version {account.agreed}{'' if account.agreed == newest else ', not the newest'}"
        )
        who = Html(f'<b>{e(account.annotator.name)}</b> <small class="m-dim">{e(account.annotator.pseudonym)}</small>')
        rows.append([who, account.role, state, agreed, ago(account.created_at)])
    empty = "No account yet: whoever opens this page on this computer may do everything. The first one must be a manager's."
    count = note(plural(len(known), "account"), "m-small") if known else ""
    return Html(table(["Name", "Role", "State", "Has agreed to", "Made"], rows, empty=empty, name="Accounts") + count)


def _account(s: Session, who: str | None) -> Account:
    found = next((account for account in people.accounts(s) if account.annotator.id == number(who)), None)
    if found is None:
        raise HfiError("choose somebody who has an account")
    return found


def _limit(key: str, value: str) -> int | None:
    text = str(value or "").strip()
    if not text:
        return None if key != "break_length_minutes" else next(f.default for f in fields(Wellbeing) if f.name == key)  # type: ignore[return-value]
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{LIMITS[key][0].lower()} is {text!r}: give a whole number, or leave it empty")
    return int(text)
