"""`hfi generate`: the images that people will judge."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hfi.cli.common import GUIDES, ModelOption, OffloadOption
from hfi.cli.options import JsonOption, WorkspaceOption, name_option, with_config
from hfi.config import check, option
from hfi.distributed import from_main, in_turn, is_main, mine
from hfi.errors import UsageError
from hfi.progress import progress
from hfi.prompts import Prompt, load_prompts, set_name
from hfi.runs import Run
from hfi.workspace import Workspace

if TYPE_CHECKING:
    from hfi.diffusion.tokens import LearnedToken
    from hfi.erase.erasure import Erasure


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How each image is made."""

    images_per_prompt: int = option(1, "images of each prompt", low=1)
    seed: int = option(0, "seed of the first image; the others follow, except where the prompts file names one", low=0)
    steps: int = option(25, "DDIM steps", low=1)
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none", low=0)
    negative_prompt: str = option("", "what the guidance leads away from")
    batch_size: int = option(
        8, "images sampled together; changes nothing but the speed, and rounding that can show in a pixel", low=1
    )
    device: str = option("auto", "cpu, cuda, mps or auto")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Planned:
    """One image to make; `key` is its identity in the database."""

    key: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Work:
    """What is known before a model is loaded. `model` as a record names it; `missing`: keys of the job's images that are not there
    yet."""

    space: Workspace
    run: Run
    model: str
    content: str
    job: list[Planned]
    missing: set[str]
    tokens: "list[LearnedToken]"
    removals: "list[Erasure]"


@with_config(GenerateConfig)
def generate(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts file: .txt, .csv with a 'prompt' column, or .json.", show_default=False)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="One prompt; may be repeated.", show_default=False)] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="A learned token that prompts or --against name, by name or file; may be repeated.", show_default=False
        ),
    ] = None,
    erasure: Annotated[
        list[str] | None,
        typer.Option(help="Generate with this erasure applied, by name or file; several add up.", show_default=False),
    ] = None,
    guide: Annotated[
        str | None, typer.Option(help=f"Lead away from concepts while sampling: {GUIDES}.", show_default=False)
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="What --guide leads away from, as words or as a token such as <smoking>; may be repeated.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, name_option("Name to find these images by.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the model while it samples; another one is another image.")
    ] = "float32",
    cpu_offload: OffloadOption = False,
    as_json: JsonOption = False,
    config: GenerateConfig,
) -> None:
    """Generate the images that people will judge. Images that are there already are not made again."""
    from hfi.cli.common import find_file, load_tokens, start_run
    from hfi.diffusion.memory import PRECISIONS, offload
    from hfi.diffusion.sd import check_placeholders, content_id, find_model, load_sd, pick_device, text_widths, tokenize
    from hfi.diffusion.tokens import check_fits, install
    from hfi.erase.erasure import Erasure, apply, check_together, identity
    from hfi.files import check_writable
    from hfi.hub import pinned
    from hfi.images import png
    from hfi.keeping import add, prepare
    from hfi.store import queries
    from hfi.store.queries import Provenance
    from hfi.store.session import reading

    against = [text.strip() for text in against or []]
    guidance = _guidance(guide, against, config)
    device = pick_device(config.device)

    def ask() -> Work:
        space = Workspace.open(workspace)
        engine = space.engine()
        wanted = _prompts(prompts, prompt)
        tokens = load_tokens(space, token or [])
        removals = [Erasure.load(find_file(space.erasures, name, "erasure", "hfi erase")) for name in erasure or []]
        check_writable(space.runs)
        prepare(engine, space.images)
        source = find_model(model)
        exact = pinned(model, source)
        for t in tokens:
            check_fits(t, text_widths(source), model)
        content = content_id(source)
        check_together(removals, content, model)

        common = {
            "model": content,
            "negative_prompt": config.negative_prompt,
            "steps": config.steps,
            "guidance_scale": config.guidance_scale,
            "scheduler": "DDIM",
            "erasure": identity(removals),
        }
        if precision != "float32":
            common |= {"precision": precision}
        if guidance:
            common |= {"guide": guide, "against": against}
        named = {t.placeholder: t.content for t in tokens}
        job = plan(wanted, config.images_per_prompt, config.seed, common, named)
        settings = {k: v for k, v in asdict(config).items() if k not in ("batch_size", "device")}
        digest = hashlib.sha256("\n".join(p.key for p in job).encode()).hexdigest()
        settings |= {
            "model": exact,
            "model_content": content,
            "erasure": "+".join(erasure or []) or None,
            "tokens": token or [],
            "images": digest,
        }
        if precision != "float32":
            settings |= {"precision": precision}
        if guidance:
            settings |= {"guide": guide, "against": against}
        run = start_run(space, "generate", name, set_name(prompts) if prompts else "images", settings)
        with reading(engine) as session:
            missing = {p.key for p in job} - queries.has_keys(session, [p.key for p in job])
        return Work(space, run, exact, content, job, missing, tokens, removals)

    work = from_main(ask)
    job, missing, run = work.job, work.missing, work.run
    todo = [batch for batch in batches(job, config.batch_size) if any(p.key in missing for p in batch)]

    @cache
    def engine() -> Any:
        return work.space.engine()

    store = work.space.images

    def keep(planned: Planned, shape: tuple[int, int], data: bytes) -> None:
        made = Provenance(
            key=planned.key,
            sha256=store.write(data),
            width=shape[0],
            height=shape[1],
            source="generated",
            prompt=planned.prompt,
            negative_prompt=config.negative_prompt or None,
            model=work.model,
            model_content=work.content,
            seed=planned.seed,
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            scheduler="DDIM",
            run=run.path.name,
            erasure=identity(work.removals),
            guide=" ".join([guide, *against]) if guide else None,
        )
        add(engine(), store, data, made)

    if todo:
        sd = load_sd(work.model, device, PRECISIONS[precision])
        for t in work.tokens:
            sd = install(sd, t)
        sd = apply(sd, *work.removals)
        if cpu_offload:
            offload(sd.unet, (*sd.text_encoders, sd.vae), sd.device)
        texts = [*(p.prompt for batch in todo for p in batch), config.negative_prompt, *(guidance.texts if guidance else ())]
        for text in texts:
            check_placeholders(sd, text)
        tokenize(sd, texts)  # says what is cut before the bar starts
        own = [p for batch in mine(todo) for p in batch]
        made = ((p, image.size, png(image)) for p, image in zip(own, _sample(sd, own, config, guidance), strict=True))
        with progress("generating", len(job), "images", len(job) - len(missing)) as advance:
            for planned, shape, data in in_turn(todo, made):
                if planned.key in missing:
                    keep(planned, shape, data)
                    advance(1, "")
    if not is_main():
        return
    result = {"run": run.path.name, "images": len(job), "new": len(missing)}
    run.finish(result)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{len(missing)} images made, {len(job) - len(missing)} were there already (run {run.path.name})")


def plan(prompts: Sequence[Prompt], count: int, seed: int, common: dict[str, Any], tokens: dict[str, str]) -> list[Planned]:
    """`count` images of each prompt, all first ones before all second ones: asking for more later keeps those that are there.

    Image j of a prompt with a seed of its own gets that seed + j; the others get `seed` + their place in the list. `tokens` maps
    placeholders to hashes; those that a prompt, or the guide, names are part of what its image depends on.
    """
    from hfi.diffusion.tokens import placeholders

    found: dict[str, Planned] = {}
    everywhere = " ".join([common["negative_prompt"], *common.get("against", ())])
    for j in range(count):
        for i, prompt in enumerate(prompts):
            own = seed + j * len(prompts) + i if prompt.seed is None else prompt.seed + j
            named = {p: tokens[p] for p in placeholders(prompt.text + everywhere) if p in tokens}
            made_by = {**common, "prompt": prompt.text, "seed": own, "tokens": named}
            key = hashlib.sha256(json.dumps(made_by, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
            found.setdefault(key, Planned(key, prompt.text, own))
    return list(found.values())


def batches(job: Sequence[Planned], count: int) -> list[Sequence[Planned]]:
    """The whole job in batches of `count`. An image depends on its neighbours in a batch by rounding alone, but that can show in a
    pixel: so an interrupted job makes the batches that lack an image again as they were, and several processes share whole ones."""
    return [job[i : i + count] for i in range(0, len(job), count)]


def _prompts(file: Path | None, given: list[str] | None) -> tuple[Prompt, ...]:
    texts = [text.strip() for text in given or []]
    if not all(texts):
        raise UsageError("an empty --prompt: give some text")
    found = (*(load_prompts(file) if file else ()), *(Prompt(text) for text in texts))
    if not found:
        raise UsageError("nothing to generate: give --prompts FILE or --prompt TEXT")
    return found


def _guidance(guide: str | None, against: Sequence[str], config: GenerateConfig) -> Any:
    """What --guide names, checked against the other settings."""
    if guide is None:
        if against:
            raise UsageError("--against says what a guide leads away from: choose one with --guide")
        return None
    from hfi.guide import guidance

    found = guidance(guide, against)
    found.check(config.guidance_scale, config.negative_prompt)
    return found


def _sample(sd: Any, todo: Sequence[Planned], config: GenerateConfig, guidance: Any) -> Any:
    from hfi.diffusion.sample import sample

    return sample(
        sd,
        [p.prompt for p in todo],
        [p.seed for p in todo],
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        negative_prompt=config.negative_prompt,
        batch_size=config.batch_size,
        guidance=guidance,
    )
