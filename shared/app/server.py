"""The chat model as a server on this machine, for clients that speak OpenAI's protocol.

    curl http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json" \\
         -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'

It listens on 127.0.0.1 alone. A web page from elsewhere cannot talk to it either: requests whose Host or Origin is not
this machine are refused, so that a name which an attacker points at 127.0.0.1 leads nowhere.
"""

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.app.chat import TEMPERATURE, TOP_P, Said
from shared.app.engine import LONGEST_ANSWER, BusyError, Engine, Question
from shared.errors import CourseError

MODEL_NAME = "llm-by-hand"
LONGEST_BODY = 1_000_000  # bytes of one request
LOCAL_NAMES = ("127.0.0.1", "localhost")
# The browser itself refuses to load anything from another host.
CONTENT_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'"


class ChatMessage(BaseModel):
    """One message of the conversation. What a "system" message says is dropped: the model was not trained on any."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The fields of OpenAI's request that mean something here; others are accepted and ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str = MODEL_NAME
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stream: bool = False
    n: Literal[1] | None = None


def error_body(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def pair_messages(messages: Sequence[ChatMessage]) -> tuple[list[Said], str]:
    """The finished exchanges and the last question. Raises CourseError unless user and assistant take turns."""
    said = [message for message in messages if message.role in ("user", "assistant")]
    roles = [message.role for message in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        raise CourseError("user and assistant must take turns, and the user has the last word")
    history = [Said(user.content, answer.content) for user, answer in zip(said[::2], said[1::2], strict=False)]
    return history, said[-1].content


def as_question(request: ChatRequest) -> Question:
    """What the engine answers. Raises CourseError for what it would refuse."""
    history, message = pair_messages(request.messages)
    most = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    return Question(
        message,
        history,
        temperature=TEMPERATURE if request.temperature is None else request.temperature,
        top_p=TOP_P if request.top_p is None else request.top_p,
        most_tokens=LONGEST_ANSWER if most is None else min(most, LONGEST_ANSWER),
        seed=secrets.randbits(32) if request.seed is None else request.seed,
    )


def envelope(kind: str, **fields: Any) -> dict[str, Any]:
    """What every reply of the protocol begins with."""
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time())}
    return head | {"model": MODEL_NAME} | fields


async def whole_answer(engine: Engine, question: Question, request: Request) -> JSONResponse:
    """The answer in one piece; given up when the client hangs up."""
    text, count = "", 0
    async with aclosing(engine.pieces(question)) as pieces:
        async for piece, number in pieces:
            text, count = text + piece, number
            if await request.is_disconnected():
                break
    prompt = len(engine.prompt_ids(question))
    finish = "length" if count >= question.most_tokens else "stop"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
    return JSONResponse(envelope("chat.completion", choices=[choice], usage=usage))


async def event_stream(
    first: tuple[str, int] | None, rest: AsyncGenerator[tuple[str, int], None], most: int
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of text, the reason for the end, and [DONE]."""
    head = envelope("chat.completion.chunk")

    def event(delta: dict[str, str], finish: str | None = None) -> str:
        chunk = head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    count = 0
    async with aclosing(rest):  # a client that hangs up frees the model
        yield event({"role": "assistant", "content": ""})
        if first is not None:
            piece, count = first
            yield event({"content": piece})
        async for piece, number in rest:
            count = number
            yield event({"content": piece})
    yield event({}, "length" if count >= most else "stop")
    yield "data: [DONE]\n\n"


class LocalOnly:
    """Refuses requests that are not this machine's own, and bodies that are too long, before anybody reads them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = refuse(headers)
        if refusal and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal:
            await JSONResponse(error_body(refusal[1]), status_code=refusal[0])(scope, receive, send)
        else:
            await self.app(scope, limited(receive), with_policy(send))


def refuse(headers: dict[str, str]) -> tuple[int, str] | None:
    """The status and the reason with which a request is turned away; None for a welcome one."""
    origin = headers.get("origin")
    if host_name(f"//{headers.get('host', '')}") not in LOCAL_NAMES:
        return 403, "this server answers to 127.0.0.1 and localhost only"
    if origin is not None and (host_name(origin) not in LOCAL_NAMES or urlsplit(origin).netloc != headers["host"]):
        return 403, "a page from another origin may not talk to this server"
    if headers.get("sec-fetch-site") == "cross-site":
        return 403, "a page from another site may not talk to this server"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > LONGEST_BODY:
        return 413, f"the request is too long: at most {LONGEST_BODY:,} bytes are read"
    return None


def host_name(address: str) -> str | None:
    """The host in an address, None when it cannot be read."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def limited(receive: Receive) -> Receive:
    """The same messages, until there are too many bytes of them: a body need not say how long it is."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > LONGEST_BODY:
            raise HTTPException(413, f"the request is too long: at most {LONGEST_BODY:,} bytes are read")
        return message

    return counted


def with_policy(send: Send) -> Send:
    """The same replies, which tell the browser to load nothing from elsewhere."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            policy = (b"content-security-policy", CONTENT_POLICY.encode())
            message = {**message, "headers": [*message.get("headers", []), policy]}
        await send(message)

    return sender


def build_app(engine: Engine) -> FastAPI:
    """The endpoint as an ASGI application: POST /v1/chat/completions and GET /v1/models."""
    app = FastAPI(title="LLM by Hand", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(LocalOnly)

    @app.exception_handler(CourseError)
    async def refused(_request: Request, error: CourseError) -> JSONResponse:
        if isinstance(error, BusyError):
            return JSONResponse(error_body(str(error), "server_busy"), status_code=503, headers={"retry-after": "1"})
        return JSONResponse(error_body(str(error)), status_code=400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = "the body is no valid JSON" if first["type"] == "json_invalid" else f"{place}: {first['msg']}"
        return JSONResponse(error_body(message), status_code=400)

    @app.exception_handler(HTTPException)
    async def failed(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail)), status_code=error.status_code)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL_NAME, "object": "model", "created": 0, "owned_by": "you"}]}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        question = as_question(body)
        if not body.stream:
            return await whole_answer(engine, question, request)
        pieces = engine.pieces(question)
        first = await anext(pieces, None)  # a busy server says so with a status, before the stream begins
        events = event_stream(first, pieces, question.most_tokens)
        return StreamingResponse(events, media_type="text/event-stream")

    return app
