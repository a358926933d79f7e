"""The main job and its stages: corpus -> tokenizer -> shard -> pretraining -> instruction tuning -> questions.

Each stage is a function that a subcommand of the command line calls too. What decides the outcome of a run is in its
`Recipe`: two runs with equal recipes on one machine end with equal weights. A recipe in hours is the exception: what it
comes to is measured, and kept in run.json for as long as the job is unfinished.
"""

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.app.progress import Say, watch
from shared.app.report import corpus_of, open_model
from shared.app.sizing import Sizes, count_parameters, fit_to_time, new_model, scaled, seconds_per_step
from shared.app.summary import begin_text, on_one_line, summarize_stories, summarize_text
from shared.corpora import STORY_WORLDS, Corpus, load_corpus, settle_name
from shared.corpora.base import TOKENIZER_TEXT, excerpt
from shared.corpora.instructions import examiner_of
from shared.errors import CourseError
from shared.files import write_atomically
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.loader import SHARD_FILE, Shard, write_shard
from shared.text.prepare import encode_texts
from shared.text.template import SPECIAL_TOKENS, render_conversation, render_story
from shared.training.checkpoint import (
    ARCHITECTURES,
    RESUME,
    WEIGHTS,
    checkpoint_every,
    load_resume,
    save_model,
)
from shared.training.distributed import distribute, is_distributed, is_sharded, rank, require_even_shares, wait_for_all
from shared.training.evaluate import document_loss
from shared.training.own_data import BYTES_A_TOKEN
from shared.training.runlog import Preset, RunLog, find_preset, machine_summary, versions
from shared.training.sharded import FOLDER, load_sharded, remove_sharded, sharded_checkpoint_every, whole_weights
from shared.training.train import (
    Batch,
    Run,
    TrainConfig,
    sample_every,
    show_progress,
    train,
    validate_every,
)
from shared.tuning.instruct import mask_questions, write_instruction_shard

LESSONS_SHARE = 0.45  # in the pretraining text, for each story: so many stories with questions about them
CONVERSATIONS_SHARE = 0.25  # and so many conversations
TUNING_SHARE = 0.3  # for each story of the corpus, so many conversations to tune on
RULE_TOKENS = 100  # a conversation by rule has about so many: of these, so many are made that few are read twice
MOST_EPOCHS = 4  # over real text: Tiny Shakespeare then ends at 3.89 nats a token; after 10, learnt by heart, at 4.72
WATCHED_TEXTS = 64  # validation texts that are read along the way
FEW_STEPS = 50  # a stage this short needs no estimate


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of a run; None means what the preset says."""

    corpus: str = "stories"
    stories: int | None = None
    world: str | None = None
    seed: int = 0
    preset: str = "laptop"
    steps: int | None = None  # of pretraining
    hours: float | None = None  # for the whole job: steps and the model's size then follow from what the machine can do

    def __post_init__(self) -> None:
        if self.hours is not None and self.steps is not None:
            raise CourseError("the hours decide the number of steps: leave out one of --hours and --steps")

    def corpus_recipe(self) -> dict[str, Any]:
        """What training.json keeps, so that the same corpus can be loaded again."""
        stories = self.stories or find_preset(self.preset).stories
        return {"name": self.corpus, "stories": stories, "seed": self.seed, "world": self.world}

    def load_corpus(self) -> Corpus:
        recipe = self.corpus_recipe()
        return load_corpus(recipe.pop("name"), **recipe, watch=watch)


def fingerprint(corpus: Corpus) -> str:
    """The sha256 of the training text: it tells whether a learner's file changed between two runs."""
    digest = hashlib.sha256()
    for text in corpus.train:
        digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------ text to shards


def train_tokenizer(corpus: Corpus, vocab_size: int, seed: int) -> BPETokenizer:
    """Learn a vocabulary from some of the corpus and, where it has some, of its conversations."""
    return BPETokenizer.train(tokenizer_texts(corpus, seed), vocab_size, SPECIAL_TOKENS)


def tokenizer_texts(corpus: Corpus, seed: int) -> list[str]:
    """About TOKENIZER_TEXT characters from all over the corpus, and conversations."""
    texts = excerpt(corpus.train, TOKENIZER_TEXT)
    if corpus.world is not None:
        for conversation in corpus.world.conversations(max(100, len(corpus.train) // 50), seed):
            texts += [text for turn in conversation for text in (turn.user, turn.assistant)]
    return texts


def pretraining_documents(corpus: Corpus, tokenizer: BPETokenizer, seed: int) -> list[list[int]]:
    """Every text of the corpus and, where there is a world, lessons and conversations: all their tokens are targets."""
    documents = list(encode_texts(tokenizer, watch(corpus.train, "encoding texts")))
    if corpus.world is not None:
        lessons = corpus.world.reading_lessons(round(LESSONS_SHARE * len(corpus.train)), seed)
        talks = corpus.world.conversations(round(CONVERSATIONS_SHARE * len(corpus.train)), seed)
        documents += [render_conversation(tokenizer, talk)[0] for talk in watch([*lessons, *talks], "encoding talks")]
    return documents


@contextmanager
def shard_folder(out: Path) -> Iterator[Path]:
    """A folder for a shard while it is needed: the recipe builds it again in seconds, the same each time."""
    folder = out / "shard"
    try:
        yield folder
        wait_for_all()
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def write_once(write: Callable[[], object]) -> None:
    """Call `write` on the first rank, while the others wait for what it leaves on the disk."""
    if rank() == 0:
        write()
    wait_for_all()


def first_rank(say: Say) -> Say:
    """`say` on the first rank; the others keep quiet."""
    return say if rank() == 0 else lambda line: None


# ----------------------------------------------------------------------------------------------- one stage of training


@dataclass(frozen=True)
class Stage:
    """What a stage of training is made of, and what it needs in order to go on after an interruption."""

    name: str
    out: Path  # the model directory: resume.pt lies there until the stage is done
    config: TrainConfig
    origin: dict[str, Any]  # what the weights depend on besides config: text, sizes, seed
    every: int  # steps between validations and checkpoints
    unseen: Sequence[Sequence[int]]  # documents for validation along the way,
    masks: Sequence[Sequence[bool]] | None  # and which of their tokens count

    @property
    def identity(self) -> dict[str, Any]:
        training = asdict(self.config)
        del training["micro_batches"]  # changes nothing: another number of ranks may go on with the run
        return {"stage": self.name, **self.origin, "training": training}


def train_stage(
    stage: Stage,
    model: LanguageModel,
    shard: Shard | Callable[[int], Batch],
    callbacks: Sequence[Callable[[Run], None]] = (),
    *,
    resume: bool = False,
    log: Path | None = None,
    say: Say = print,
    parallel: str = "ddp",
) -> list[dict]:
    """Train with an estimate, a progress bar, validation, checkpoints and perhaps a log; return the history.

    parallel: how several ranks share the work, where torchrun has started several; `callbacks` and all that is written
    for people are the first rank's then.
    """
    config, state, done = stage.config, None, 0
    require_even_shares(config.batch_size, config.micro_batches)
    if is_distributed() and parallel == "fsdp":
        return train_sharded(stage, model, shard, resume=resume, log=log, say=say)
    if resume:
        state = load_resume(stage.out, stage.identity)
        done = state["step"]
        say(f"{stage.name}: going on after step {done:,} of {config.steps:,}")
    if config.steps - done > FEW_STEPS:
        minutes = (config.steps - done) * seconds_per_step(model, shard, config) / 60
        say(f"{stage.name}: about {minutes:.1f} minutes on this machine")
    every_step: list[Callable[[Run], None]] = [validation(stage)]
    if rank() == 0:
        every_step += [
            *([RunLog(log, config.seed, resume_step=done if resume else None)] if log else []),
            checkpoint_every(stage.every, stage.out, stage.identity),
            *callbacks,
            show_progress(stage.name),
        ]
    return train(distribute(model, parallel, config.micro_batches), shard, config, every_step, state=state)


def validation(stage: Stage) -> Callable[[Run], None]:
    """The call-back that measures the loss on unseen documents."""
    return validate_every(stage.every, lambda model: document_loss(model, stage.unseen, stage.masks))


def train_sharded(
    stage: Stage,
    model: LanguageModel,
    shard: Shard | Callable[[int], Batch],
    *,
    resume: bool,
    log: Path | None,
    say: Say,
) -> list[dict]:
    """`train_stage` for a model of which every rank holds a part: validation and checkpoints take all ranks."""
    config, state = stage.config, None
    sharded = distribute(model, "fsdp")
    if resume:
        state = load_sharded(stage.out, sharded, config, stage.identity)
        say(f"{stage.name}: going on after step {state['step']:,} of {config.steps:,}")
    every_step = [validation(stage)]
    if rank() == 0:
        every_step += [RunLog(log, config.seed, resume_step=state["step"] if state else None)] if log else []
        every_step += [show_progress(stage.name)]
    every_step += [sharded_checkpoint_every(stage.every, stage.out, stage.identity)]
    return train(sharded, shard, config, every_step, state=state)


def stage_info(stage: Stage, history: Sequence[dict]) -> dict[str, Any]:
    """What training.json keeps of a stage: its options and its losses."""
    return {
        "training": asdict(stage.config),
        "train_loss": statistics.fmean(record["loss"] for record in history[-20:]),
        "val_loss": history[-1].get("val_loss"),
        "val_losses": [[record["step"], record["val_loss"]] for record in history if "val_loss" in record],
    }


def finish_stage(stage: Stage, model: torch.nn.Module, tokenizer: BPETokenizer, info: dict[str, Any]) -> None:
    """Save the model, and only then remove what going on would have needed. Every rank has to call it."""
    if is_sharded(model):
        weights = whole_weights(model)
        plain = next(kind for kind, _ in ARCHITECTURES.values() if isinstance(model, kind))
        model = plain(model.config)
        model.load_state_dict(weights)
    if rank() == 0:
        save_model(stage.out, model, tokenizer, info)
        (stage.out / RESUME).unlink(missing_ok=True)
    remove_sharded(stage.out)


def require_resumable(out: Path, resume: bool) -> None:
    """Complain before any work is done, not after."""
    if resume and not ((out / RESUME).exists() or (out / FOLDER).exists()):
        raise CourseError(f"{out}: there is no unfinished run to go on with; leave out --resume to start one")


# ------------------------------------------------------------------------------------------------------ pretraining


def pretrain(
    recipe: Recipe,
    out: Path,
    corpus: Corpus,
    *,
    resume: bool = False,
    log: Path | None = None,
    say: Say = print,
    parallel: str = "ddp",
    sizes: Sizes | None = None,
) -> None:
    """Train a tokenizer and a model on the corpus and leave both in the model directory `out`.

    sizes: what to train in the place of the preset's model, and for how long. Until the end, `out` holds resume.pt
    beside whatever model was there before. Raises TrainingInterrupted after Ctrl-C, CourseError when there is nothing
    to resume or when it was begun with another recipe.
    """
    require_resumable(out, resume)
    say = first_rank(say)
    preset = find_preset(recipe.preset)
    if sizes is not None:
        preset = sizes.applied_to(preset)
    tokenizer = train_tokenizer(corpus, preset.vocab_size, recipe.seed)
    say(f"tokenizer: {tokenizer.vocab_size:,} tokens")
    torch.manual_seed(recipe.seed)
    model = new_model(preset, tokenizer.vocab_size)
    context = model.config.context
    with shard_folder(out) as folder:
        write_once(lambda: write_shard(folder, pretraining_documents(corpus, tokenizer, recipe.seed), None, context))
        shard = Shard.open(folder)
        config = pretraining_config(preset, recipe, corpus, shard)
        described = {"architecture": preset.architecture, **asdict(model.config)}
        origin = {"corpus": recipe.corpus_recipe(), "model": described, "rows_sha256": file_sha256(folder / SHARD_FILE)}
        unseen = [render_story(tokenizer, text) for text in corpus.val[:WATCHED_TEXTS]]
        stage = Stage("pretraining", out, config, origin, preset.every, unseen, None)
        say(
            f"model: {preset.architecture}, {count_parameters(model):,} parameters; {config.steps:,} steps of "
            f"{config.batch_size * context:,} tokens, {config.steps * config.batch_size / shard.n_rows:.1f} epochs"
        )
        sample = sample_every(2 * preset.every, lambda _: on_one_line(begin_text(model, tokenizer, recipe.seed, 40)))
        history = train_stage(stage, model, shard, [sample], resume=resume, log=log, say=say, parallel=parallel)
    info = {
        "corpus": recipe.corpus_recipe(),
        "corpus_sha256": fingerprint(corpus),
        "preset": recipe.preset,
        "seed": recipe.seed,
        "hours": recipe.hours,
        "parameters": count_parameters(model),
        "instructions": False,
        "versions": versions(),
        "machine": machine_summary(),
        "pretraining": stage_info(stage, history),
    }
    finish_stage(stage, model, tokenizer, info)


def pretraining_config(preset: Preset, recipe: Recipe, corpus: Corpus, shard: Shard) -> TrainConfig:
    """The preset's training options; over real text no more than MOST_EPOCHS, unless the steps were given."""
    steps = recipe.steps
    if steps is None and corpus.world is None:
        steps = min(preset.pretrain["steps"], max(1, MOST_EPOCHS * shard.n_rows // preset.pretrain["batch_size"]))
    return TrainConfig(**scaled(preset.pretrain, steps), seed=recipe.seed)


# ----------------------------------------------------------------------------------------------- instruction tuning


def finetune(
    source: Path,
    out: Path,
    *,
    corpus: Corpus | None = None,
    preset: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    resume: bool = False,
    log: Path | None = None,
    say: Say = print,
) -> None:
    """Tune the model in the directory `source` on the conversations of its corpus; leave the result in `out`.

    What is not given is as it was in pretraining. Raises TrainingInterrupted after Ctrl-C, and CourseError where the
    corpus gives nothing to ask about or there is nothing to resume.
    """
    require_resumable(out, resume)
    model, tokenizer, info = open_model(source)
    corpus = corpus or corpus_of(info, watch)
    examiner = examiner_of(corpus)
    if examiner is None:
        raise CourseError(f"{source}: its corpus {corpus.name} gives nothing to ask about; pretrain on another")
    sizes = find_preset(preset or info["preset"])
    seed = info["seed"] if seed is None else seed
    config = TrainConfig(**scaled(sizes.finetune, steps), seed=seed)
    context = model.config.context
    by_rule = config.steps * config.batch_size * context // RULE_TOKENS
    n_talks = by_rule if corpus.world is None else round(TUNING_SHARE * len(corpus.train))
    # a seed of their own: pretraining has read the conversations of the recipe's seed
    talks = examiner.conversations(max(50, n_talks), seed + 1)
    unseen, masks = mask_questions(tokenizer, examiner.conversations(WATCHED_TEXTS, seed, "test"), context + 1)
    with shard_folder(out) as folder:
        answers = write_instruction_shard(folder, tokenizer, talks, context)
        origin = {"model_sha256": file_sha256(source / WEIGHTS), "rows_sha256": file_sha256(folder / SHARD_FILE)}
        stage = Stage("tuning", out, config, origin, sizes.every, unseen, masks)
        say(f"tuning: {config.steps:,} steps on {len(talks):,} conversations; {answers:.0%} of the tokens are answers")
        history = train_stage(stage, model, Shard.open(folder), resume=resume, log=log, say=say)
    finish_stage(stage, model, tokenizer, {**info, "instructions": True, "tuning": stage_info(stage, history)})


def can_be_tuned(source: Path, corpus: Corpus) -> bool:
    """Whether questions about the corpus fit the context of the model in `source`; a world's are made to fit."""
    examiner = examiner_of(corpus)
    if examiner is None or corpus.world is not None:
        return examiner is not None
    model, tokenizer, _ = open_model(source)
    talks = examiner.conversations(WATCHED_TEXTS, 0, "test")
    return bool(mask_questions(tokenizer, talks, model.config.context + 1)[0])


# ------------------------------------------------------------------------------------------------------ the main job

RUN_FILE = "run.json"  # in the models folder for as long as a main job is unfinished
REPORT_FILE = "report.json"  # the figures of the last main job that was finished


def main_job(
    recipe: Recipe, models: Path, *, fresh: bool = False, log: Path | None = None, say: Say = print
) -> dict[str, Any]:
    """Do everything, from the corpus to the answers; return the figures of the summary.

    A main job that was interrupted goes on where it stopped when the recipe is the same. With another recipe that is
    a CourseError unless `fresh`, so that nothing is lost by accident. After completion it starts anew.
    """
    pretrained, chat = models / "pretrained", models / "chat"
    begun = None if fresh else unfinished_job(models)
    if begun is not None:
        require_same(models, begun["settings"], asdict(recipe))
    plan = begun["plan"] if begun else make_plan(recipe, say)
    sizes = planned_sizes(plan)
    stories = sizes.stories if sizes is not None and recipe.stories is None else recipe.stories
    settled = replace(recipe, corpus=plan["corpus"], stories=stories)
    corpus = settled.load_corpus()
    say(f"corpus: {len(corpus.train):,} texts, {corpus.train_bytes / 1e6:.1f} MB: {corpus.source}")
    job = open_job(models, begun, {**asdict(recipe), "sha256": fingerprint(corpus)}, plan)
    if "pretraining" not in job["done"]:
        resume = (pretrained / RESUME).exists()
        pretrain(settled, pretrained, corpus, resume=resume, log=log, say=say, sizes=sizes)
        save_job(models, job, "pretraining")
    tuned = can_be_tuned(pretrained, corpus)
    if tuned and "tuning" not in job["done"]:
        resume, tuning_log = (chat / RESUME).exists(), log and log.with_stem(f"{log.stem}-tuning")
        steps = None if sizes is None else sizes.tuning_steps
        finetune(pretrained, chat, corpus=corpus, steps=steps, resume=resume, log=tuning_log, say=say)
        save_job(models, job, "tuning")
    if corpus.world is None:
        figures = summarize_text(pretrained, chat if tuned else None, corpus, recipe.seed, say)
    else:
        figures = summarize_stories(pretrained, chat, corpus, recipe.seed, say)
    write_json(models / REPORT_FILE, figures)
    (models / RUN_FILE).unlink(missing_ok=True)
    return figures


def make_plan(recipe: Recipe, say: Say) -> dict[str, Any]:
    """What the recipe leaves to this machine and this moment; a job that is resumed keeps what was decided first."""
    name = settle_name(recipe.corpus, say)
    if recipe.hours is None:
        return {"corpus": name, "sizes": None}
    preset, tuned, most_tokens = find_preset(recipe.preset), True, None
    if name not in STORY_WORLDS:
        corpus = replace(recipe, corpus=name).load_corpus()
        tuned, most_tokens = examiner_of(corpus) is not None, MOST_EPOCHS * corpus.train_bytes / BYTES_A_TOKEN
    sizes = fit_to_time(preset, recipe.hours, say, tuned=tuned, most_tokens=most_tokens)
    return {"corpus": name, "sizes": asdict(sizes)}


def planned_sizes(plan: dict[str, Any]) -> Sizes | None:
    """The sizes in a plan; None where they are the preset's."""
    return None if plan["sizes"] is None else Sizes(**plan["sizes"])


def open_job(
    models: Path, begun: dict[str, Any] | None, settings: dict[str, Any], plan: dict[str, Any]
) -> dict[str, Any]:
    """The record of the unfinished job in `models`, or that of a new one."""
    if begun is not None:
        require_same(models, begun["settings"], settings)
        return begun
    for folder in (models / "pretrained", models / "chat"):
        (folder / RESUME).unlink(missing_ok=True)
    return save_job(models, {"settings": settings, "plan": plan, "done": []})


def require_same(models: Path, begun: dict[str, Any], settings: dict[str, Any]) -> None:
    """Complain when an unfinished job was begun with other settings than these."""
    changed = [f"{key} was {begun.get(key)}" for key, value in settings.items() if begun.get(key) != value]
    if changed:
        raise CourseError(
            f"{models}: there is an unfinished run with other settings ({', '.join(changed)}); "
            "finish it with those, or give it up with --fresh (make run FRESH=1)"
        )


def unfinished_job(models: Path) -> dict[str, Any] | None:
    """What run.json says, or None where there is none; CourseError for one that cannot be read."""
    path = models / RUN_FILE
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        plan = job.get("plan", {"corpus": job["settings"]["corpus"], "sizes": None})  # older ones had none
        planned_sizes(plan)
        return {"settings": dict(job["settings"]), "plan": plan, "done": list(job["done"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # not as if there were none: to begin anew would throw the checkpoints away
        raise CourseError(f"{path} is damaged: give up its run with --fresh (make run FRESH=1)") from error


def save_job(models: Path, job: dict[str, Any], done: str | None = None) -> dict[str, Any]:
    """Note that a stage is done, on the disk too; return the record."""
    job = {**job, "done": [*job["done"], *([done] if done else [])]}
    write_json(models / RUN_FILE, job)
    return job


def write_json(path: Path, value: Any) -> None:
    content = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"
    write_atomically(path, lambda file: file.write(content))
