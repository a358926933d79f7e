"""From one sequence to another: recurrent readers and writers, and attention between them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.attention import MultiHeadAttention, merge_heads, split_heads
from shared.model.gpt import GPTConfig, check_length, gpt_block
from shared.model.layers import FeedForward, LayerNorm
from shared.text.embeddings import sinusoidal_positions


def rnn_step(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor) -> Tensor:
    """The next state of a plain recurrent network, from what is read now and from the state so far.

    x (B, N), h (B, D), w_x (D, N), w_h (D, D), bias (D,). Returns (B, D). Source: "Finding Structure in Time" (Elman,
    1990), there with another bend.
    """
    return torch.tanh(x @ w_x.T + h @ w_h.T + bias)  # (B, D)


class RNN(nn.Module):
    """A plain recurrent layer: `rnn_step` from the first token to the last. (B, T, N) -> (B, T, D) and the last state.

    A state is a tuple of (B, D), here of one. Its first entry is what the rest of the model gets to see.
    """

    n_blocks, n_states = 1, 1  # how many blocks of D rows w_x and w_h have, and how many vectors the state has

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.w_x = nn.Parameter(torch.empty(self.n_blocks * width, n_in))
        self.w_h = nn.Parameter(torch.empty(self.n_blocks * width, width))
        self.bias = nn.Parameter(torch.empty(self.n_blocks * width))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))  # as in torch.nn.RNN

    def start(self, batch: int) -> tuple[Tensor, ...]:
        """The state of one who has read nothing: zeros."""
        return (self.w_h.new_zeros(batch, self.width),) * self.n_states

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Read one token, x (B, N)."""
        return (rnn_step(x, state[0], self.w_x, self.w_h, self.bias),)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read a sequence; returns what was visible after each token, (B, T, D), and the last state."""
        state = self.start(x.shape[0]) if state is None else state
        visible = []
        for t in range(x.shape[1]):
            state = self.step(x[:, t], state)
            visible.append(state[0])
        return torch.stack(visible, dim=1), state  # (B, T, D)


def lstm_step(x: Tensor, state: tuple[Tensor, ...], w_x: Tensor, w_h: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The next state (h, c) of an LSTM: a memory cell c behind three gates, and h, the part of it that is shown.

    x (B, N), h and c (B, D), w_x (4D, N), w_h (4D, D), bias (4D,). The four blocks of D rows are, in PyTorch's order,
    input gate, forget gate, candidate, output gate. Source: "Long Short-Term Memory" (Hochreiter and Schmidhuber,
    1997); the forget gate: "Learning to Forget" (Gers, Schmidhuber and Cummins, 2000).
    """
    h, c = state
    i, f, g, o = (x @ w_x.T + h @ w_h.T + bias).chunk(4, dim=-1)  # (B, D) each
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)  # (B, D)
    return torch.sigmoid(o) * torch.tanh(c), c


class LSTM(RNN):
    """A recurrent layer of `lstm_step`: (B, T, N) -> (B, T, D) and the last state (h, c). Others see h alone.

    The forget gates begin nearly open: "An Empirical Exploration of Recurrent Network Architectures" (Jozefowicz et
    al., 2015) recommends a bias of 1.
    """

    n_blocks, n_states = 4, 2

    def __init__(self, n_in: int, width: int, forget_bias: float = 1.0) -> None:
        super().__init__(n_in, width)
        nn.init.constant_(self.bias.data[width : 2 * width], forget_bias)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return lstm_step(x, state, self.w_x, self.w_h, self.bias)


class Seq2Seq(nn.Module):
    """An encoder that reads, a decoder that writes, and with `attention` a way to look back at what was read.

    The encoder is a layer E -> D, the decoder one of the same kind, of E -> D or, with attention, of E + D -> D; E is
    the width of the embedding. Sources: "Sequence to Sequence Learning with Neural Networks" (Sutskever, Vinyals and
    Le, 2014), section 2; with attention: Bahdanau et al. (2015), section 3, here with an encoder of one direction.
    """

    def __init__(
        self, vocab_size: int, n_embedding: int, encoder: RNN, decoder: RNN, attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embedding)
        self.encoder, self.decoder, self.attention = encoder, decoder, attention
        self.head = nn.Linear(decoder.width, vocab_size)

    def read(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Token ids (B, T) to the states on the way, (B, T, D), and the last state, with which writing begins."""
        return self.encoder(self.embedding(source))

    def write(
        self, ids: Tensor, state: tuple[Tensor, ...], memory: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """One step: the token written last, ids (B,), to logits (B, V), the next state, and the shares (B, T)."""
        x, shares = self.embedding(ids), None  # (B, E)
        if self.attention is not None:
            context, shares = self.attention(state[0], memory)  # (B, D), (B, T)
            x = torch.cat((x, context), dim=-1)  # (B, E + D)
        state = self.decoder.step(x, state)
        return self.head(state[0]), state, shares

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        """Teacher forcing: at each place the right token before it is given. (B, T), (B, Tq) -> (B, Tq, V)."""
        memory, state = self.read(source)
        logits = []
        for t in range(given.shape[1]):
            step_logits, state, _ = self.write(given[:, t], state, memory)
            logits.append(step_logits)
        return torch.stack(logits, dim=1)  # (B, Tq, V)


def shift_right(target: Tensor, start: int) -> Tensor:
    """What the decoder is given when it is to write `target` (B, T): a start token, then all but the last. (B, T)."""
    return torch.cat((torch.full_like(target[:, :1], start), target[:, :-1]), dim=1)


@torch.no_grad()
def greedy_decode(model: Seq2Seq, source: Tensor, tokens: int, start: int) -> tuple[Tensor, Tensor | None]:
    """Write `tokens` tokens for each source (B, T), each time the likeliest, which is then given to the next step.

    Returns ids (B, tokens) and, if the model has attention, its shares (B, tokens, T).
    """
    memory, state = model.read(source)
    ids = source.new_full((source.shape[0],), start)  # (B,)
    written, looked = [], []
    for _ in range(tokens):
        logits, state, shares = model.write(ids, state, memory)
        ids = logits.argmax(dim=-1)  # (B,)
        written.append(ids)
        if shares is not None:
            looked.append(shares)
    return torch.stack(written, dim=1), torch.stack(looked, dim=1) if looked else None


def additive_scores(queries: Tensor, keys: Tensor, w_q: Tensor, w_k: Tensor, v: Tensor) -> Tensor:
    """How well every key suits every query, judged by a small network: v · tanh(W_q q + W_k k).

    queries (..., Tq, N), keys (..., Tk, M), w_q (A, N), w_k (A, M), v (A,). Returns (..., Tq, Tk). Source: "Neural
    Machine Translation by Jointly Learning to Align and Translate" (Bahdanau et al., 2015), appendix A.1.2.
    """
    q, k = queries @ w_q.T, keys @ w_k.T  # (..., Tq, A), (..., Tk, A)
    return torch.tanh(q[..., :, None, :] + k[..., None, :, :]) @ v  # (..., Tq, Tk, A) @ (A,) -> (..., Tq, Tk)


class AdditiveAttention(nn.Module):
    """A query's average of the memory, by `additive_scores`: (B, D) and (B, T, D) -> (B, D) and the shares (B, T)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w_q, self.w_k = nn.Parameter(torch.empty(hidden, width)), nn.Parameter(torch.empty(hidden, width))
        self.v = nn.Parameter(torch.empty(hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(parameter.shape[-1]), 1 / math.sqrt(parameter.shape[-1]))

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        scores = additive_scores(query[:, None], memory, self.w_q, self.w_k, self.v)  # (B, 1, T)
        shares = scores.softmax(dim=-1)  # (B, 1, T)
        return (shares @ memory).squeeze(1), shares.squeeze(1)  # (B, D), (B, T)


class CrossAttention(nn.Module):
    """One sequence looks at another: queries from x (B, T, D), keys and values from `memory` (B, S, D).

    Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.3, first kind.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)  # keys and values in one matrix product
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Returns (B, T, D). `memory_mask` (B, S) is True where the memory holds a word, False where padding."""
        q = split_heads(self.q(x), self.n_heads)  # (B, H, T, K)
        k, v = split_heads(self.kv(memory), 2 * self.n_heads).chunk(2, dim=1)  # (B, H, S, K) each
        mixed = F.scaled_dot_product_attention(q, k, v, memory_mask[:, None, None, :])  # (B, H, T, K)
        return self.out(merge_heads(mixed))  # (B, T, D)


class DecoderBlock(nn.Module):
    """A GPT's block with one more branch: between self-attention and feed-forward, x looks at the memory.

    In 2017 the norm stood after each sum; here it stands before each part, as in `Block`. Source: "Attention Is All
    You Need" (Vaswani et al., 2017), section 3.1.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width)
        self.attention = MultiHeadAttention(config.width, config.n_heads, config.dropout)
        self.cross_norm = LayerNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.n_heads)
        self.norm2 = LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.dropout)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) and memory (B, S, D) give (B, T, D). Without a `mask` (T, T), x is causal."""
        x = x + self.attention(self.norm1(x), None, 0, mask)
        x = x + self.cross_attention(self.cross_norm(x), memory, memory_mask)
        return x + self.feed_forward(self.norm2(x))


class Transformer(nn.Module):
    """The encoder-decoder of 2017: reads a source, writes a target, with one vocabulary for both.

    `config.n_layers` counts the blocks of each half. Kept from the paper: sinusoidal positions, one table for both
    inputs and the output, its rows scaled by sqrt(D). Changed: norms before the parts, with one more at the end of each
    half, and GELU. Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.
    """

    positions: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.register_buffer("positions", sinusoidal_positions(config.context, config.width), persistent=False)
        self.encoder = nn.ModuleList(gpt_block(config) for _ in range(config.n_layers))
        self.encoder_norm = LayerNorm(config.width)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.decoder_norm = LayerNorm(config.width)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to vectors (B, T, D) that know their word and their place."""
        tokens = check_length(ids, None, self.config.context)
        return self.embedding(ids) * math.sqrt(self.config.width) + self.positions[:tokens]

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """Ids (B, S) to the memory (B, S, D); every word sees all words where `source_mask` (B, S) is True."""
        x = self.embed(source)
        for block in self.encoder:
            x = block(x, None, 0, source_mask[:, None, None, :])
        return self.encoder_norm(x)  # (B, S, D)

    def decode(self, given: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Logits (B, T, V) for what follows each of the words given, (B, T)."""
        x = self.embed(given)
        for block in self.decoder:
            x = block(x, memory, source_mask)
        return F.linear(self.decoder_norm(x), self.embedding.weight)  # (B, T, V)

    def forward(self, source: Tensor, source_mask: Tensor, given: Tensor) -> Tensor:
        """Teacher forcing, as in `Seq2Seq`: (B, S), (B, S), (B, T) -> (B, T, V)."""
        return self.decode(given, self.encode(source, source_mask), source_mask)


@torch.no_grad()
def translate(model: Transformer, source: Tensor, source_mask: Tensor, tokens: int, start: int, stop: int) -> Tensor:
    """Write the likeliest next word again and again, for each source (B, S): ids (B, at most `tokens`), without start.

    It ends when every row has written `stop`, which then fills the rest of the shorter rows. The source is read once.
    """
    memory = model.encode(source, source_mask)  # (B, S, D)
    written = source.new_full((len(source), 1), start)  # (B, 1)
    ended = torch.zeros_like(written, dtype=torch.bool)  # (B, 1)
    while written.shape[1] <= tokens and not ended.all():
        best = model.decode(written, memory, source_mask)[:, -1:].argmax(dim=-1)  # (B, 1)
        best = best.masked_fill(ended, stop)
        ended = ended | (best == stop)
        written = torch.cat((written, best), dim=1)
    return written[:, 1:]
