"""A conversation in the terminal: read a line, stream the answer, obey the few commands that start with "/"."""

import sys
from collections.abc import Callable
from contextlib import closing

from shared.app.chat import Chat
from shared.errors import CourseError

HELP = """\
/help            this list
/reset           forget the conversation so far
/temperature X   0 takes the likeliest word each time, 1 is as varied as the training text
/quit            leave (or Ctrl-D); Ctrl-C stops an answer"""


def talk(chat: Chat, read: Callable[[str], str] = input) -> None:
    """Converse until /quit or the end of input."""
    print(f"A model of {sum(p.numel() for p in chat.model.parameters()):,} parameters. /help lists the commands.")
    while True:
        try:
            line = read("\nyou    ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            print(obey(chat, line))
        elif line:
            sys.stdout.write("model  ")
            answer_once(chat, line)


def obey(chat: Chat, line: str) -> str:
    """Carry out a command; return what to tell the user."""
    command, _, argument = line.partition(" ")
    if command == "/help":
        return HELP
    if command == "/reset":
        chat.reset()
        return "The conversation starts anew."
    if command == "/temperature":
        return set_temperature(chat, argument.strip())
    return f"{command} is no command; /help lists them."


def set_temperature(chat: Chat, argument: str) -> str:
    try:
        temperature = float(argument)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature < float("inf"):
        return f"/temperature needs a number from 0 on, as in /temperature 0.5 (now {chat.temperature:g})."
    chat.temperature = temperature
    return f"The temperature is {temperature:g}."


def answer_once(chat: Chat, message: str) -> None:
    """Print the answer to one message as it is written; Ctrl-C stops it."""
    if not message.strip():
        raise CourseError("the message is empty: type a question")
    cut = chat.prompt(message).tokens_cut
    if cut:
        print(f"(your message is too long for this model: its first {cut} tokens are left out)", file=sys.stderr)
    try:
        with closing(chat.answer(message)) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" (stopped)")
    sys.stdout.write("\n")
