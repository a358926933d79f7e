"""The command line: `python -m shared COMMAND`. Every import of weight waits until a command needs it.

A user's mistake is one line on stderr and exit code 2; results go to stdout, progress to stderr.
"""

import argparse
import importlib
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import CourseError

INTERRUPTED = 130  # what a shell reports for Ctrl-C
OFFLINE = os.environ.get("HF_HUB_OFFLINE")  # as the user has it
MOST_HOURS = 1000.0  # for a run: a slip of the finger is likelier than so much patience
OWN_CHAT = Path("models/chat")  # where `make run` leaves the tuned model
REFERENCE = Path(__file__).parent.parent / "reference"  # the tuned model that comes with the course


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is a single line, without the usage text above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def at_least(least: int) -> Callable[[str], int]:
    """An argument type: a whole number from `least` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is too small, it must be at least {least}")
        return number

    return parse


def number_in(low: float, high: float, *, open_low: bool = False) -> Callable[[str], float]:
    """An argument type: a number from `low` (left out with open_low) to `high`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= number <= high or (open_low and number == low) or math.isinf(number):
            wanted = f"{'above' if open_low else 'at least'} {low:g}" + (
                "" if math.isinf(high) else f", up to {high:g}"
            )
            raise argparse.ArgumentTypeError(f"{text} is out of range, it must be {wanted}")
        return number

    return parse


def unicode_text(text: str) -> str:
    """An argument type: text that the terminal sent as valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not valid UTF-8") from None
    return text


def stderr_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stdout_line(text: str) -> None:
    print(text, flush=True)


def close_progress_bars() -> None:
    """End the lines of the bars that an error has left open, so that its message gets a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


# ------------------------------------------------------------------------------------------------- the commands


def run_corpus(options: argparse.Namespace) -> None:
    from shared.corpora import load_corpus
    from shared.files import write_atomically

    corpus = load_corpus(options.name, stories=options.stories, seed=options.seed, world=options.world)
    texts = {"train": corpus.train, "val": corpus.val, "heldout": corpus.heldout}[options.split]
    if not texts:
        raise CourseError(f"{corpus.name}: this corpus has no {options.split} split; take train or val")
    content = "\n\n".join(text.rstrip("\n") for text in texts).encode("utf-8") + b"\n"
    write_atomically(options.out, lambda file: file.write(content))
    figures = {"corpus": corpus.name, "source": corpus.source, "split": options.split}
    figures |= {"texts": len(texts), "bytes": len(content), "out": str(options.out)}
    if options.json:
        print_json(figures)
    else:
        print(f"{options.out}: {len(texts):,} texts, {len(content):,} bytes, from {corpus.source}")


def run_tokenizer_train(options: argparse.Namespace) -> None:
    from shared.app.pipeline import train_tokenizer
    from shared.corpora import load_corpus

    corpus = load_corpus(options.corpus, stories=options.stories, seed=options.seed)
    tokenizer = train_tokenizer(corpus, options.vocab_size, options.seed)
    tokenizer.save(options.out)
    text = corpus.val[0]
    per_token = len(text.encode("utf-8")) / max(1, len(tokenizer.encode(text)))
    if options.json:
        print_json({"out": str(options.out), "vocab_size": tokenizer.vocab_size, "bytes_per_token": per_token})
    else:
        print(f"{options.out}: {tokenizer.vocab_size:,} tokens; unseen text takes {per_token:.2f} bytes a token")


def run_tokenizer_encode(options: argparse.Namespace) -> None:
    from shared.text.bpe import BPETokenizer

    tokenizer = BPETokenizer.load(options.tokenizer)
    ids = tokenizer.encode(options.text)
    if options.json:
        print_json({"ids": ids, "tokens": [tokenizer.decode([token]) for token in ids]})
    else:
        print(" ".join(map(str, ids)))


def recipe_from(options: argparse.Namespace) -> Any:
    from shared.app.pipeline import Recipe

    world = None if options.world is None else str(options.world)
    hours = getattr(options, "hours", None)  # of the main job alone
    return Recipe(str(options.corpus), options.stories, world, options.seed, options.preset, options.steps, hours)


def run_pretrain(options: argparse.Namespace) -> None:
    from shared.training.distributed import process_group, rank

    log = options.log or options.out.with_name(options.out.name + ".jsonl")
    usual: dict[str, Any] = {"resume": options.resume, "log": log, "say": stderr_line, "parallel": options.parallel}
    with process_group(), saying_how_to_resume(options):
        if options.shards is not None:
            from shared.app.streaming import pretrain_on_shards

            sizes = {"seed": options.seed, "steps": options.steps, "rows_at_once": options.rows_at_once}
            pretrain_on_shards(options.shards, options.out, options.preset, **sizes, **usual)
        else:
            from shared.app.pipeline import pretrain
            from shared.corpora import settle_name

            options.corpus = settle_name(options.corpus, stderr_line)
            recipe = recipe_from(options)
            pretrain(recipe, options.out, recipe.load_corpus(), **usual)
        if rank() == 0:
            measure = f"python -m shared evaluate --model {options.out}"
            print(f"{options.out}: a pretrained model; measure it with: {measure}")


def run_stream(options: argparse.Namespace) -> None:
    from shared.app.streaming import stream_shards
    from shared.corpora.streaming import stream_texts
    from shared.text.bpe import gpt2_tokenizer
    from shared.text.template import END_OF_TEXT, special_id
    from shared.training.runlog import find_preset

    if OFFLINE is None:  # `main` has set it for the sake of everything else
        os.environ.pop("HF_HUB_OFFLINE", None)
    tokenizer = gpt2_tokenizer()
    start = special_id(tokenizer, END_OF_TEXT)
    state = stream_shards(
        options.out,
        lambda skip: stream_texts(options.name, skip),
        lambda texts: [[start, *ids] for ids in tokenizer.encode_batch(texts)],
        context=find_preset(options.preset).model["context"],
        tokens=int(options.tokens),
        tokens_per_shard=int(options.tokens_per_shard),
        source=options.name,
        say=stderr_line,
    )
    if options.json:
        print_json(state)
    else:
        print(f"{options.out}: {state['tokens']:,} tokens of {state['texts']:,} texts in {state['shards']:,} shards")


def run_presets(options: argparse.Namespace) -> None:
    from shared.app.needs import describe_needs, preset_needs

    for name in PRESET_NAMES:
        hardware = options.on or ("a100" if name == "gpt2" else "laptop")
        needs = preset_needs(name, options.ranks, options.parallel == "fsdp", hardware)
        print(describe_needs(needs))


def run_scaling(options: argparse.Namespace) -> None:
    from shared.app.scaling import run_grid

    records = run_grid(options.log, stderr_line)
    print(f"{options.log}: {len(records)} runs, notebook 5.5 fits a law to them")


def run_watch(options: argparse.Namespace) -> None:
    from shared.app.watching import watch_run

    watch_run(options.path, options.every, options.once)


def run_finetune(options: argparse.Namespace) -> None:
    from shared.app.pipeline import finetune

    with saying_how_to_resume(options):
        finetune(
            options.model,
            options.out,
            preset=options.preset,
            seed=options.seed,
            steps=options.steps,
            resume=options.resume,
            log=options.log,
            say=stderr_line,
        )
    print(f"{options.out}: a tuned model; talk to it with: python -m shared chat --model {options.out}")


def run_main_job(options: argparse.Namespace) -> None:
    from shared.app.pipeline import main_job

    say = stderr_line if options.json else stdout_line
    if options.mine:
        from shared.course.mine import install, load_mine

        install(load_mine(), say=say)
    with saying_how_to_resume(options):
        log = options.log or options.models / "log.jsonl"
        figures = main_job(recipe_from(options), options.models, fresh=options.fresh, log=log, say=say)
    if options.json:
        print_json(figures)


class Stopped(Exception):
    """Ctrl-C, with what to say about it."""


@contextmanager
def saying_how_to_resume(options: argparse.Namespace) -> Iterator[None]:
    """Inside, Ctrl-C ends with the command that goes on from the last checkpoint."""
    from shared.training.train import TrainingInterrupted

    try:
        yield
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        raise Stopped(f"{str(error) or 'stopped'}; to go on: {resume_command(options)}") from None


def resume_command(options: argparse.Namespace) -> str:
    """The command that goes on with an interrupted one, as the user would type it."""
    arguments = [argument for argument in options.arguments if argument not in ("--fresh", "--resume")]
    if options.command == "run":  # finds by itself what it was doing
        under_make = os.environ.get("COURSE_MAKE")  # the Makefile puts "make run ..." there
        return under_make or shlex.join(["python", "-m", "shared", *arguments])
    resume = ["--resume"] if (options.out / "resume.pt").exists() else []
    return shlex.join(["python", "-m", "shared", *arguments, *resume])


def run_evaluate(options: argparse.Namespace) -> None:
    from shared.app.progress import watch
    from shared.app.report import evaluate_model
    from shared.corpora import load_corpus

    figures = evaluate_model(
        options.model,
        corpus=load_corpus(options.corpus) if options.corpus else None,
        stories=options.stories,
        questions=options.questions,
        seed=options.seed,
        watch=watch,
    )
    if options.json:
        print_json(figures)
        return
    for name, value in figures.items():
        print(f"{name:26} {'-' if value is None else f'{value:.4f}' if isinstance(value, float) else value}")


def run_sample(options: argparse.Namespace) -> None:
    from shared.app.chat import decode_stream
    from shared.app.report import open_model
    from shared.model.generate import stream
    from shared.text.template import END_OF_TEXT, special_id

    model, tokenizer, _ = open_model(options.model)
    start = special_id(tokenizer, END_OF_TEXT)
    ids = [start, *tokenizer.encode(options.prompt)]
    context = model.config.context
    if len(ids) > context:
        raise CourseError(
            f"the prompt has {len(ids)} tokens (its start token included) and the model reads {context}: shorten it"
        )
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    settings = {name: getattr(options, name) for name in names}
    tokens = stream(model, ids, options.tokens, stop_tokens=[start], seed=options.seed, **settings)
    pieces = decode_stream(tokenizer, (token for token in tokens if token != start))
    if options.json:
        text = "".join(pieces)
        print_json({"prompt": options.prompt, "continuation": text})
        return
    sys.stdout.write(options.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def open_chat_model(given: Path | None) -> tuple[Any, Any]:
    """The model to talk to, and its tokenizer: those given, else the learner's own, else those of the course."""
    from shared.app.report import open_model

    directory = given or (OWN_CHAT if OWN_CHAT.exists() else REFERENCE)
    if not directory.exists():
        raise CourseError(f"{directory}: there is no such model; `make run` (python -m shared run) trains one")
    if directory is REFERENCE:
        stderr_line("no models/chat yet: this is the model that comes with the course; `make run` trains your own")
    model, tokenizer, info = open_model(directory)
    if not info.get("instructions"):
        stderr_line(f"{directory}: this model was pretrained only; it continues text more than it answers")
    return model, tokenizer


def run_chat(options: argparse.Namespace) -> None:
    from shared.app.chat import TEMPERATURE, TOP_P, Chat
    from shared.app.terminal import answer_once, talk

    model, tokenizer = open_chat_model(options.model)
    temperature = TEMPERATURE if options.temperature is None else options.temperature
    chat = Chat(model, tokenizer, temperature=temperature, top_p=options.top_p or TOP_P, seed=options.seed)
    if options.once is None:
        talk(chat)
    else:
        answer_once(chat, options.once)


def run_web(options: argparse.Namespace) -> None:
    from shared.app.engine import Engine
    from shared.app.web import serve

    model, tokenizer = open_chat_model(options.model)
    stderr_line(f"http://127.0.0.1:{options.port}    (Ctrl-C ends the server)")
    serve(Engine(model, tokenizer), options.port)


def run_export(options: argparse.Namespace) -> None:
    from shared.app.report import open_model
    from shared.model.huggingface import export_model

    model, tokenizer, _ = open_model(options.model)
    export_model(model, tokenizer, options.out)
    print(f"{options.out}: config, weights and tokenizer for transformers' AutoModelForCausalLM.from_pretrained")


def run_bare_train(options: argparse.Namespace) -> None:
    from shared.app.bare import STORIES, VOCAB_SIZE, bare_train

    figures = bare_train(
        options.corpus,
        options.out,
        stories=options.stories or STORIES,
        world=options.world,
        steps=options.steps,
        vocab_size=options.vocab_size or VOCAB_SIZE,
        seed=options.seed,
        log=options.log,
        say=stderr_line,
    )
    if options.json:
        print_json(figures)
        return
    for name, value in figures.items():
        print(f"{name:16} {'-' if value is None else f'{value:.4f}' if isinstance(value, float) else value}")


def run_bare_sample(options: argparse.Namespace) -> None:
    from shared.app.bare import bare_sample

    settings = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    text = bare_sample(options.model, options.prompt, options.tokens, seed=options.seed, **settings)
    if options.json:
        print_json({"prompt": options.prompt, "continuation": text})
    else:
        print(options.prompt + text)


def run_bench(options: argparse.Namespace) -> int:
    name = f"bench_{options.what}"
    records = getattr(importlib.import_module(f"shared.app.{name}"), name)(options.data)
    if options.log is not None:
        from shared.training.runlog import RunLog

        log = RunLog(options.log, seed=0)
        for record in records:
            log.write(**record)
    if options.json:
        print_json(records)
    else:
        for record in records:
            unit, peer = record["settings"]["unit"], record["settings"]["peer"]
            verdict = "ok" if record["ok"] else "TOO LOW"
            print(f"{record['name']}: ours {record['ours']:,.4g} {unit}, {peer} {record['peer']:,.4g} {unit}")
            print(f"    ratio {record['ratio']:.2f}, at least {record['bound']:.2f}: {verdict}")
    return 0 if all(record["ok"] for record in records) else 1


# --------------------------------------------------------------------------------------------------- the options


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m shared",
        description="Build, train and talk to a language model of your own.",
        epilog="Begin with: python -m shared run      then: python -m shared chat",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)
    add_run(commands)
    add_corpus(commands)
    add_tokenizer(commands)
    add_pretrain(commands)
    add_stream(commands)
    add_presets(commands)
    add_scaling(commands)
    add_watch(commands)
    add_finetune(commands)
    add_evaluate(commands)
    add_sample(commands)
    add_chat(commands)
    add_web(commands)
    add_export(commands)
    add_bare_train(commands)
    add_bare_sample(commands)
    add_bench(commands)
    add_progress(commands)
    return parser


def add_command(
    commands: Any, name: str, handler: Callable, summary: str, *examples: str, json_help: str | None = None
) -> argparse.ArgumentParser:
    """A subcommand with its summary, its examples and, where a machine may read the result, --json."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  python -m shared {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    if json_help:
        parser.add_argument("--json", action="store_true", help=json_help)
    return parser


def add_text_options(parser: argparse.ArgumentParser, *, stories: int | None) -> None:
    """Which stories: shared by all commands that generate some."""
    usual = "as the preset says" if stories is None else f"{stories:,}"
    parser.add_argument("--stories", type=at_least(1), default=stories, metavar="N", help=f"how many stories ({usual})")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="the same seed, the same result (0)")
    parser.add_argument("--world", type=Path, metavar="FILE", help="a TOML file that adds to the world of the stories")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="training steps (as the preset says)")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="the file for a line of JSON a step (beside the model)"
    )


PRESET_NAMES = ("tiny", "laptop", "wide", "desktop", "gpt2")  # runlog.PRESETS, without importing PyTorch to list them
CORPUS_HELP = (
    "stories, stories-full, python-docs, python-code, the path of a UTF-8 text file or of a folder of .txt and .md "
    "files, or a download (fetched once): "
    "tinyshakespeare, wikitext2, wikitext2-valid, sms-spam, tinystories, tinystories-part, tinystories-valid; "
    "or text: tinystories-part where it can be had, else python-code"
)


def add_run(commands: Any) -> None:
    parser = add_command(
        commands, "run", run_main_job, "the main job: from text to a model that answers five questions",
        "run", "run --corpus python-docs", "run --corpus tinyshakespeare", "run --corpus my_letters.txt --seed 1",
        "run --corpus my_notes", "run --preset desktop --hours 2 --corpus text",
        json_help="print the figures as JSON; everything else goes to stderr",
    )  # fmt: skip
    parser.add_argument("--corpus", default="stories", metavar="NAME|FILE", help=CORPUS_HELP)
    parser.add_argument("--preset", choices=PRESET_NAMES, default="laptop", help="the size of everything (laptop)")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="where to leave the models")
    parser.add_argument(
        "--hours", type=number_in(0, MOST_HOURS, open_low=True), metavar="H",
        help="fit the job to this time: measures this machine, then chooses the model's size and the steps",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="give up a run that was interrupted, start anew")
    parser.add_argument("--mine", action="store_true", help="with your solved exercises in the place of our functions")
    add_text_options(parser, stories=None)
    add_training_options(parser)


def add_corpus(commands: Any) -> None:
    parser = add_command(
        commands, "corpus", run_corpus, "write a corpus to a text file, a blank line between texts",
        "corpus stories --out stories.txt --stories 1000", "corpus python-docs --split val --out docs.txt",
        json_help="print what was written as JSON",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help=CORPUS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--split", choices=("train", "val", "heldout"), default="train", help="which part (train)")
    add_text_options(parser, stories=50_000)


def add_tokenizer(commands: Any) -> None:
    both = commands.add_parser("tokenizer", help="train a tokenizer, or encode a text with one")
    tokenizer_commands = both.add_subparsers(required=True, metavar="train|encode", parser_class=OneLineParser)
    train = add_command(
        tokenizer_commands, "train", run_tokenizer_train, "learn a byte-pair vocabulary from a corpus",
        "tokenizer train --corpus stories --vocab-size 1024 --out tokenizer.json",
        json_help="print what was learnt as JSON",
    )  # fmt: skip
    train.add_argument("--corpus", required=True, metavar="NAME|FILE", help=CORPUS_HELP)
    train.add_argument(
        "--vocab-size", type=at_least(1), required=True, metavar="N", help="tokens, special ones included"
    )
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it, as JSON")
    train.add_argument("--stories", type=at_least(1), default=10_000, metavar="N", help="how many stories (10,000)")
    train.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="of the stories (0)")
    encode = add_command(
        tokenizer_commands, "encode", run_tokenizer_encode, "print the token ids of a text",
        "tokenizer encode --tokenizer tokenizer.json --text 'a fox' --json",
        json_help="print ids and tokens as JSON",
    )  # fmt: skip
    encode.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE", help="from tokenizer train, or a model"
    )
    encode.add_argument("--text", type=unicode_text, required=True, help="what to encode")


def add_pretrain(commands: Any) -> None:
    parser = add_command(
        commands, "pretrain", run_pretrain, "train a tokenizer and a model on a corpus",
        "pretrain --corpus stories --out models/pretrained", "pretrain --corpus book.txt --out models/book --resume",
        "pretrain --shards data/fineweb-edu --preset gpt2 --out models/gpt2",
    )  # fmt: skip
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", metavar="NAME|FILE", help=CORPUS_HELP)
    text.add_argument("--shards", type=Path, metavar="DIR", help="what `stream` wrote: for text too large to hold")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument("--preset", choices=PRESET_NAMES, default="laptop", help="the size of everything (laptop)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run with the same options")
    parser.add_argument(
        "--parallel", choices=("ddp", "fsdp"), default="ddp",
        help="under torchrun: the whole model on every rank, or a part of it (ddp)",
    )  # fmt: skip
    parser.add_argument(
        "--rows-at-once", type=at_least(1), default=16, metavar="N",
        help="with --shards, rows that a rank reads at a time: fewer need less memory (16)",
    )  # fmt: skip
    add_text_options(parser, stories=None)
    add_training_options(parser)


def add_stream(commands: Any) -> None:
    parser = add_command(
        commands, "stream", run_stream, "read a large public data set over the network into shards, resumable",
        "stream fineweb-edu --out data/fineweb-edu --tokens 10e9", "stream tinystories --out data/tiny --tokens 1e8",
        json_help="print what was written as JSON",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="fineweb-edu or tinystories; needs the package datasets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--tokens", type=number_in(1, math.inf), default=1e8, metavar="N", help="so many (1e8)")
    parser.add_argument(
        "--tokens-per-shard", type=number_in(1, math.inf), default=1e7, metavar="N", help="in a shard (1e7)"
    )
    parser.add_argument("--preset", choices=PRESET_NAMES, default="gpt2", help="whose rows to make (gpt2)")


def add_presets(commands: Any) -> None:
    parser = add_command(
        commands, "presets", run_presets, "the sizes to train at, and what each needs: memory, operations, hours",
        "presets", "presets --ranks 8 --parallel fsdp --on h100",
    )  # fmt: skip
    parser.add_argument("--ranks", type=at_least(1), default=1, metavar="N", help="on so many cards together (1)")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="how they share the work (ddp)")
    parser.add_argument("--on", choices=("laptop", "a100", "h100"), help="what they are (a100 for gpt2, else laptop)")


def add_scaling(commands: Any) -> None:
    parser = add_command(
        commands, "scaling", run_scaling, "train a grid of tiny models, for the law of notebook 5.5",
        "scaling --log runs/scaling.jsonl",
    )  # fmt: skip
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="a line of JSON for each run")


def add_watch(commands: Any) -> None:
    parser = add_command(
        commands, "watch", run_watch, "the curves of a run while it goes, in the terminal and as a picture",
        "watch models", "watch models/gpt2.jsonl --every 30",
    )  # fmt: skip
    parser.add_argument("path", type=Path, metavar="DIR|FILE", help="the folder of a run, or its log")
    parser.add_argument("--every", type=number_in(0, math.inf), default=5.0, metavar="S", help="seconds (5)")
    parser.add_argument("--once", action="store_true", help="show them once and leave")


def add_finetune(commands: Any) -> None:
    parser = add_command(
        commands, "finetune", run_finetune, "tune a pretrained model on the instructions of its corpus",
        "finetune --model models/pretrained --out models/chat",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the pretrained model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument("--preset", choices=PRESET_NAMES, help="training options (those of pretraining)")
    parser.add_argument("--seed", type=at_least(0), metavar="S", help="that of pretraining, unless given")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run with the same options")
    add_training_options(parser)


def add_evaluate(commands: Any) -> None:
    parser = add_command(
        commands, "evaluate", run_evaluate, "measure a model: losses, stories before the judge, answers",
        "evaluate --model models/chat", "evaluate --model models/chat --json --stories 1000",
        json_help="print one flat JSON object; null where a corpus allows no such figure",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model directory")
    parser.add_argument("--corpus", metavar="NAME|FILE", help="measure on this corpus (the one it was trained on)")
    parser.add_argument("--stories", type=at_least(1), default=256, metavar="N", help="stories to generate (256)")
    parser.add_argument("--questions", type=at_least(1), default=256, metavar="N", help="test conversations (256)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="of the stories and questions (0)")


def unless_given(value: float | None) -> str:
    return "" if value is None else f" ({value})"


def add_sampling_options(
    parser: argparse.ArgumentParser, temperature: float | None = None, top_p: float | None = None
) -> None:
    """How to draw; None leaves it to the command."""
    parser.add_argument(
        "--temperature", type=number_in(0, math.inf), default=temperature, metavar="X",
        help=f"0 takes the likeliest token, 1 samples as the model believes{unless_given(temperature)}",
    )  # fmt: skip
    parser.add_argument(
        "--top-p", type=number_in(0, 1, open_low=True), default=top_p, metavar="P",
        help=f"keep the likeliest tokens that reach this probability together{unless_given(top_p)}",
    )  # fmt: skip


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """What to continue, how far and how: for the commands that let a model write freely."""
    parser.add_argument("--prompt", type=unicode_text, default="", metavar="TEXT", help="how the text begins (nothing)")
    parser.add_argument("--tokens", type=at_least(1), default=100, metavar="N", help="at most so many new ones (100)")
    parser.add_argument("--seed", type=at_least(0), metavar="S", help="the same seed, the same text")
    parser.add_argument("--top-k", type=at_least(1), metavar="K", help="keep the K likeliest tokens (all)")
    add_sampling_options(parser, temperature=0.8, top_p=1.0)


def add_sample(commands: Any) -> None:
    parser = add_command(
        commands, "sample", run_sample, "let a model continue a text",
        "sample --model models/pretrained --prompt 'One day,' --tokens 100 --seed 1",
        "sample --model models/pretrained --temperature 1.5 --min-p 0.1",
        json_help="print prompt and continuation as JSON",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model directory")
    add_writing_options(parser)
    parser.add_argument(
        "--min-p", type=number_in(0, 1, open_low=True), metavar="P",
        help="keep tokens of at least P times the likeliest one's probability (all)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", type=number_in(0, math.inf, open_low=True), metavar="X",
        help="above 1, tokens that the text holds already become less likely (1)",
    )  # fmt: skip


def add_chat(commands: Any) -> None:
    parser = add_command(
        commands, "chat", run_chat, "talk to a tuned model in the terminal",
        "chat", "chat --model models/chat --once 'Who are you?'",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="DIR", help="(models/chat, or else the one of the course)")
    parser.add_argument("--once", type=unicode_text, metavar="TEXT", help="print one answer and leave")
    parser.add_argument("--seed", type=at_least(0), metavar="S", help="the same seed, the same answers")
    add_sampling_options(parser)


def add_web(commands: Any) -> None:
    parser = add_command(
        commands, "web", run_web, "a page to talk to a model and look inside it, and an endpoint for OpenAI's clients",
        "web", "web --model models/chat --port 8081",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model directory (models/chat, else the course's)")
    parser.add_argument("--port", type=at_least(1), default=8080, metavar="N", help="on 127.0.0.1 (8080)")


def add_export(commands: Any) -> None:
    parser = add_command(
        commands, "export", run_export, "write a model in the form that another library reads",
        "export --model models/chat --to hf --out exported",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model directory")
    parser.add_argument("--to", choices=("hf",), required=True, help="hf: Hugging Face transformers")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write it")


def add_bare_train(commands: Any) -> None:
    parser = add_command(
        commands, "bare-train", run_bare_train, "train a GPT written in NumPy alone, without any other library",
        "bare-train --corpus stories-small --out bare.npz", "bare-train --corpus book.txt --out book.npz --steps 500",
        json_help="print the losses and the story rate as JSON",
    )  # fmt: skip
    parser.add_argument("--corpus", required=True, metavar="NAME|FILE", help=CORPUS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .npz file to write")
    parser.add_argument("--vocab-size", type=at_least(1), metavar="N", help="tokens, special ones included (1024)")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="training steps (a few minutes' worth)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the loss of every step to this .jsonl file")
    add_text_options(parser, stories=None)


def add_bare_sample(commands: Any) -> None:
    parser = add_command(
        commands, "bare-sample", run_bare_sample, "let a model of bare-train continue a text",
        "bare-sample --model bare.npz --prompt 'One day,' --tokens 100 --seed 1",
        json_help="print prompt and continuation as JSON",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="the .npz file of bare-train")
    add_writing_options(parser)


def add_bench(commands: Any) -> None:
    parser = add_command(
        commands, "bench", run_bench, "speed beside an established library; exit code 1 below the bound",
        "bench tokenizer", "bench generate --json",
        json_help='print {"ours", "peer", "ratio", "settings"} for each measurement',
    )  # fmt: skip
    what = ("tokenizer", "generate", "pretrain", "ladder", "bare", "recipes", "ablation")
    parser.add_argument("what", choices=what, help="what to measure")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the figures to this .jsonl file, too")
    parser.add_argument("--data", metavar="FILE", help="a text file to measure on (text that every machine has)")


# --------------------------------------------------------------------------------------------------------- main


def add_progress(commands: Any) -> None:
    parser = add_command(
        commands, "progress", run_progress, "judge your exercises, and say what comes next",
        "progress", "progress --hours-per-week 5",
        json_help="print one line for a program to read",
    )  # fmt: skip
    parser.add_argument(
        "--hours-per-week", type=number_in(0, math.inf, open_low=True), metavar="N", help="forecast the day"
    )


def run_progress(options: argparse.Namespace) -> int:
    from shared.course import progress

    hours = [] if options.hours_per_week is None else ["--hours-per-week", str(options.hours_per_week)]
    return progress.main([*hours, *(["--json"] if options.json else [])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else transformers would try the network for 23 s
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without the character shows "?" instead of failing
            stream.reconfigure(errors="replace")
    try:
        options = build_parser().parse_args(argv)
        options.arguments = list(sys.argv[1:] if argv is None else argv)
        code = options.handler(options) or 0
        sys.stdout.flush()
        return code
    except CourseError as error:
        close_progress_bars()
        stderr_line(f"error: {' '.join(str(error).split())}")
        return 2
    except Stopped as stopped:
        stderr_line(f"\n{stopped}")
        return INTERRUPTED
    except KeyboardInterrupt:
        stderr_line("\nstopped")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has left; nothing may be written to it any more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
