"""Wrong answers to the exercises of chapter 4, and words of the diagnosis that each must get."""

BLOCK = "def forward(self, x, *context):\n"
TOP_P = "def top_p_filter(logits, p):\n    ordered, order = logits.sort(dim=-1, descending=True)\n"
GPT = "def forward(self, ids, cache=None):\n    tokens = check_length(ids, cache, self.config.context)\n"
POSITIONS = "    positions = token_positions(tokens, cache, ids.device)\n"
MASK = "    mask = None if cache is None else cache.mask(tokens, ids.device)\n"
EMBED = "    x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))\n"
BLOCKS = "    for layer, block in enumerate(self.blocks):\n        x = block(x, cache, layer, mask)\n"
MOVE = "    if cache is not None:\n        cache.length += tokens\n"
LOGITS = "    return F.linear(self.final_norm(x), self.token_embedding.weight)"
BARE_LOSS = (
    "def cross_entropy(logits, targets):\n"
    "    z = logits.data.reshape(-1, logits.shape[-1])\n"
    "    flat = np.asarray(targets).reshape(-1)\n"
    "    rows = np.flatnonzero(flat != IGNORE_INDEX)\n"
    "    columns = flat[rows]\n"
    "    p = np.exp(z - z.max(axis=1, keepdims=True))\n"
    "    p /= p.sum(axis=1, keepdims=True)\n"
    "    loss = -np.log(p[rows, columns]).sum() / len(rows)\n"
)
BARE_RECORD = "    return record(np.asarray(loss), (logits,), back, 'cross-entropy')"
NEXT = "def next_logits(model, ids, start, cache):\n    seen = 0 if cache is None else cache.length\n"

WRONG_ANSWERS = {
    "4.1": [
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias",
            "divide by D, not by D - 1",
        ),
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(1, keepdim=True)\n"
            "    return c * torch.rsqrt(c.square().mean(1, keepdim=True) + eps) * weight + bias",
            "the vectors' means are not 0",
        ),
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return c / (c.square().mean(-1, keepdim=True) + eps) * weight + bias",
            "variance is not 1",
        ),
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return (c * torch.rsqrt(c.square().mean(-1, keepdim=True) + eps) + bias) * weight",
            "scale first, then shift",
        ),
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return c / c.square().mean(-1, keepdim=True).sqrt() * weight + bias",
            "a vector of equal numbers gives nan",
        ),
    ],
    "4.2": [
        (
            "def rms_norm(x, eps=1e-6):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return c * torch.rsqrt(c.square().mean(-1, keepdim=True) + eps)",
            "RMS norm subtracts nothing",
        ),
        (
            "def rms_norm(x, eps=1e-6):\n    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)",
            "not of their sum",
        ),
        (
            "def rms_norm(x, eps=1e-6):\n    return x * torch.rsqrt(x.square().mean() + eps)",
            "take the mean along the last axis",
        ),
        (
            "def rms_norm(x, eps=1e-6):\n    return x / x.square().mean(-1, keepdim=True).sqrt()",
            "a vector of zeros gives nan",
        ),
    ],
    "4.3": [
        (
            "def gelu_tanh(x):\n    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))",
            "this is the exact GELU",
        ),
        (
            "def gelu_tanh(x):\n    return 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3))",
            "√(2/π) inside tanh is missing",
        ),
        (
            "def gelu_tanh(x):\n    return 0.5 * x * torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
            "far to the right the result is not z",
        ),
        (
            "def gelu_tanh(x):\n    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))",
            "the cubic term is missing",
        ),
    ],
    "4.4": [
        (
            BLOCK + "    x = self.attention(self.norm1(x), *context)\n    return self.feed_forward(self.norm2(x))",
            "neither part has a shortcut",
        ),
        (
            BLOCK + "    x = self.norm1(x)\n    x = x + self.attention(x, *context)\n"
            "    x = self.norm2(x)\n    return x + self.feed_forward(x)",
            "the shortcut carries the normed x",
        ),
        (
            BLOCK + "    x = self.norm1(x + self.attention(x, *context))\n"
            "    return self.norm2(x + self.feed_forward(x))",
            "this is post-norm",
        ),
        (
            BLOCK + "    return x + self.attention(self.norm1(x), *context) + self.feed_forward(self.norm2(x))",
            "feed-forward reads the x from before attention",
        ),
        (
            BLOCK + "    x = x + self.attention(self.norm1(x))\n    return x + self.feed_forward(self.norm2(x))",
            "attention did not get *context",
        ),
    ],
    "4.5": [
        (
            GPT + POSITIONS + MASK + "    x = self.dropout(self.token_embedding(ids))\n" + BLOCKS + MOVE + LOGITS,
            "enter the blocks without a position",
        ),
        (
            GPT + "    positions = torch.arange(tokens)\n" + MASK + EMBED + BLOCKS + MOVE + LOGITS,
            "yours begin at 0 again",
        ),
        (
            GPT + POSITIONS + MASK + EMBED + BLOCKS + MOVE + "    return F.linear(x, self.token_embedding.weight)",
            "the final norm is missing",
        ),
        (
            GPT + POSITIONS + MASK + EMBED + BLOCKS + MOVE + "    return self.final_norm(x)",
            "the result is the stream",
        ),
        (
            GPT + POSITIONS + MASK + EMBED + BLOCKS + LOGITS,
            "cache.length has stayed at 3",
        ),
        (
            GPT + POSITIONS + EMBED + MOVE + MASK + BLOCKS + LOGITS,
            "asked for before cache.length moves",
        ),
        (
            GPT + POSITIONS + MASK + EMBED + BLOCKS.replace("x = block", "block") + MOVE + LOGITS,
            "does not get what block 0 returned",
        ),
        (
            GPT.replace("check_length(ids, cache, self.config.context)", "ids.shape[1]")
            + POSITIONS
            + MASK
            + EMBED
            + BLOCKS
            + MOVE
            + LOGITS,
            "was not refused by a CourseError",
        ),
    ],
    "4.6": [
        (
            "def top_k_filter(logits, k):\n"
            "    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]\n"
            "    return logits.masked_fill(logits < kth, 0.0)",
            "logits that fall away are 0",
        ),
        (
            "def top_k_filter(logits, k):\n"
            "    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]\n"
            "    return logits.masked_fill(logits <= kth, -math.inf)",
            "the k-th largest belongs to the k",
        ),
        (
            "def top_k_filter(logits, k):\n"
            "    kth = logits.flatten().topk(min(k, logits.numel())).values[-1]\n"
            "    return logits.masked_fill(logits < kth, -math.inf)",
            "one limit for the whole batch",
        ),
        (
            "def top_k_filter(logits, k):\n"
            "    values, places = logits.topk(min(k, logits.shape[-1]), dim=-1)\n"
            "    return torch.full_like(logits, -math.inf).scatter(-1, places, values)",
            "all of them stay",
        ),
    ],
    "4.7": [
        (
            TOP_P + "    sums = ordered.softmax(-1).cumsum(-1)\n"
            "    ordered = ordered.masked_fill(sums > p, -math.inf)\n"
            "    return torch.empty_like(logits).scatter(-1, order, ordered)",
            "the token that crosses p is missing",
        ),
        (
            TOP_P + "    shares = ordered.softmax(-1)\n"
            "    return ordered.masked_fill(shares.cumsum(-1) - shares >= p, -math.inf)",
            "the kept tokens stand in sorted order",
        ),
        (
            TOP_P.replace("True", "False") + "    shares = ordered.softmax(-1)\n"
            "    ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= p, -math.inf)\n"
            "    return torch.empty_like(logits).scatter(-1, order, ordered)",
            "sort with the largest first",
        ),
        (
            TOP_P + "    shares = ordered.softmax(-1)\n"
            "    ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= p, 0.0)\n"
            "    return torch.empty_like(logits).scatter(-1, order, ordered)",
            "what falls away is 0",
        ),
    ],
    "4.8": [
        (
            "def sample(probabilities, uniforms):\n    return probabilities.argmax(-1)",
            "this is greedy",
        ),
        (
            "def sample(probabilities, uniforms):\n"
            "    ends = probabilities.cumsum(-1)\n"
            "    return torch.searchsorted(ends, uniforms[:, None], right=True).squeeze(1)",
            "scale the number by the row's total",
        ),
        (
            "def sample(probabilities, uniforms):\n"
            "    ends = probabilities.double().cumsum(-1)\n"
            "    return torch.searchsorted(ends, uniforms[:, None] * ends[:, -1:]).squeeze(1)",
            "the number 0 gives a token of probability 0",
        ),
        (
            "def sample(probabilities, uniforms):\n"
            "    ends = probabilities[:1].double().cumsum(-1).expand(len(uniforms), -1).contiguous()\n"
            "    return torch.searchsorted(ends, uniforms[:, None] * ends[:, -1:], right=True).squeeze(1)",
            "the rows do not use their own probabilities",
        ),
    ],
    "4.9": [
        (
            BARE_LOSS + "    def back(g):\n"
            "        p[rows] *= (g / len(rows))\n        p[flat == IGNORE_INDEX] = 0\n"
            "        return (p.reshape(logits.shape),)\n" + BARE_RECORD,
            "does not sum to 0",
        ),
        (
            BARE_LOSS + "    def back(g):\n"
            "        p[rows, columns] -= 1\n        p[flat == IGNORE_INDEX] = 0\n"
            "        return ((p * g).reshape(logits.shape),)\n" + BARE_RECORD,
            "that of the sum and not of the mean",
        ),
        (
            BARE_LOSS + "    def back(g):\n"
            "        p[rows, columns] -= 1\n        p[flat == IGNORE_INDEX] = 0\n"
            "        return ((p / len(rows)).reshape(logits.shape),)\n" + BARE_RECORD,
            "multiply by the gradient that arrives",
        ),
        (
            BARE_LOSS + "    def back(g):\n"
            "        p[rows, columns] -= 1\n"
            "        return ((p * g / len(rows)).reshape(logits.shape),)\n" + BARE_RECORD,
            "receive a gradient: theirs is 0",
        ),
        (
            BARE_LOSS.replace("/ len(rows)", "/ len(flat)") + "    def back(g):\n"
            "        return (p.reshape(logits.shape),)\n" + BARE_RECORD,
            "divided by all places",
        ),
        (
            BARE_LOSS.replace("z - z.max(axis=1, keepdims=True)", "z.copy()") + "    def back(g):\n"
            "        return (p.reshape(logits.shape),)\n" + BARE_RECORD,
            "subtract the row's maximum first",
        ),
        (BARE_LOSS + "    return Tensor(np.asarray(loss))", "no way back to the logits"),
    ],
    "4.10": [
        (NEXT + "    return model(ids[:, start + seen :], cache).data[:, -1]", "call it inside"),
        (NEXT + "    with no_grad():\n        return model(ids[:, start + seen :], cache)", "hand over its array"),
        (
            NEXT + "    with no_grad():\n        return model(ids[:, start + seen :], cache).data",
            "of all places come back",
        ),
        (
            NEXT + "    with no_grad():\n        return model(ids[:, start + seen :], cache).data[:, 0]",
            "of the first place",
        ),
        (NEXT + "    with no_grad():\n        return model(ids[:, -1:], cache).data[:, -1]", "has to read all"),
        (NEXT + "    with no_grad():\n        return model(ids[:, seen:], cache).data[:, -1]", "is start used?"),
        (NEXT + "    with no_grad():\n        return model(ids[:, start:], cache).data[:, -1]", "were read again"),
        (
            NEXT + "    with no_grad():\n        return model(ids[:, start + seen :]).data[:, -1]",
            "hand it to the model",
        ),
    ],
}
