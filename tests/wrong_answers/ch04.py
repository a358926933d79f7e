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
WINDOW = (
    "def window_mask(queries, keys, window, device=None):\n"
    "    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)\n"
)
COUNT = (
    "def count_parameters(config):\n"
    "    V, C, L, D = config.vocab_size, config.context, config.n_layers, config.width\n"
    "    return ({tables}) * D + L * ({block}) + {top}"
)
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
EXTEND = (
    "def extend(self, layer, k, v):\n"
    "    start = self.length\n"
    "    end = self.length + k.shape[2]\n"
    "    if layer == len(self.keys):\n"
    "        for store in (self.keys, self.values):\n"
    "            store.append(k.new_zeros(k.shape[0], k.shape[1], self.capacity, k.shape[3]))\n"
    "    self.keys[layer][:, :, start : start + end - self.length] = k\n"
    "    self.values[layer][:, :, start : start + end - self.length] = v\n"
    "    return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]"
)
# The right cross-attention, from which the wrong answers to 4.14 are made by changing a piece.
CROSS = (
    "def forward(self, x, memory, memory_mask):\n"
    "    q = split_heads(self.q(x), self.n_heads)\n"
    "    k, v = split_heads(self.kv(memory), 2 * self.n_heads).chunk(2, dim=1)\n"
    "    mixed = F.scaled_dot_product_attention(q, k, v, memory_mask[:, None, None, :])\n"
    "    return self.out(merge_heads(mixed))"
)
FROM_X = "split_heads(self.kv(x), 2 * self.n_heads).chunk(2, dim=1)"

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
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return c / (c.square().mean(-1, keepdim=True).sqrt() + eps) * weight + bias",
            "under the root",
        ),
        (
            "def layer_norm(x, weight, bias, eps=1e-5):\n"
            "    c = x - x.mean(-1, keepdim=True)\n"
            "    return c * torch.rsqrt(c.square().mean(-1, keepdim=True) + eps)",
            "weight and bias change nothing",
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
        (
            "def rms_norm(x, eps=1e-6):\n    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps)",
            "eps is to be added under the root",
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
        (
            "def gelu_tanh(x):\n    return x * torch.sigmoid(1.702 * x)",
            "a rougher approximation",
        ),
        (
            "def gelu_tanh(x):\n    return x * torch.sigmoid(x)",
            "this is SiLU",
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
        (
            BLOCK + "    x = x + self.attention(self.norm1(x), *context)\n    return self.feed_forward(self.norm2(x))",
            "feed-forward has no shortcut",
        ),
        (
            BLOCK + "    x = x + self.attention(self.norm2(x), *context)\n"
            "    return x + self.feed_forward(self.norm1(x))",
            "norm1 belongs before attention",
        ),
        (
            BLOCK + "    x += self.attention(self.norm1(x), *context)\n    return x + self.feed_forward(self.norm2(x))",
            "the x that was handed in has changed",
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
        (COUNT.format(tables="2 * V + C", block="12 * D * D + 13 * D", top="2 * D"), "V*D too many"),
        (COUNT.format(tables="V", block="12 * D * D + 13 * D", top="2 * D"), "the table of positions is missing"),
        (COUNT.format(tables="V + C", block="12 * D * D + 4 * D", top="2 * D"), "the biases are missing"),
        (COUNT.format(tables="V + C", block="12 * D * D + 9 * D", top="2 * D"), "the two norms (2D each)"),
        (COUNT.format(tables="V + C", block="12 * D * D + 11 * D", top="D"), "a norm has a weight and a bias"),
        (COUNT.format(tables="V + C", block="12 * D * D + 13 * D", top="0"), "2D too few: the final norm"),
        (COUNT.format(tables="V + C", block="8 * D * D + 13 * D", top="2 * D"), "4D² too few in each block"),
        (COUNT.format(tables="V + C", block="11 * D * D + 13 * D", top="2 * D"), "attention's out is a matrix too"),
        (
            COUNT.format(tables="V + C", block="8 * D * D + 9 * D + config.n_heads * 4 * D * D", top="2 * D"),
            "heads share the width",
        ),
        (COUNT.format(tables="V + C", block="12 * D * D + 13 * D", top="2 * D / 1"), "a whole number"),
    ],
    "4.7": [
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
    "4.8": [
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
    "4.9": [
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
    "4.10": [
        (
            "def min_p_filter(logits, p):\n    return logits.masked_fill(logits.softmax(-1) < p, -math.inf)",
            "the limit is p itself",
        ),
        (
            "def min_p_filter(logits, p):\n"
            "    return logits.masked_fill(logits < p * logits.amax(-1, keepdim=True), -math.inf)",
            "p multiplies the largest logit",
        ),
        (
            "def min_p_filter(logits, p):\n"
            "    shares = logits.softmax(-1)\n"
            "    return logits.masked_fill(shares < p * shares.max(), -math.inf)",
            "one limit for the whole batch",
        ),
        (
            "def min_p_filter(logits, p):\n"
            "    return logits.masked_fill(logits <= logits.amax(-1, keepdim=True) + math.log(p), -math.inf)",
            "with p = 1 nothing is left",
        ),
        (
            "def min_p_filter(logits, p):\n"
            "    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), 0.0)",
            "what falls away is 0",
        ),
        (
            "def min_p_filter(logits, p):\n"
            "    shares = logits.softmax(-1)\n"
            "    return shares.masked_fill(shares < p * shares.amax(-1, keepdim=True), -math.inf)",
            "has changed its value",
        ),
    ],
    "4.11": [
        (EXTEND.replace("start = self.length", "start = self.length + 1"), "one place too far"),
        (
            EXTEND.replace("    return", "    self.length += k.shape[2]\n    return"),
            "the model moves it, after all layers",
        ),
        (EXTEND.replace("start = self.length", "start = 0"), "earlier keys have changed"),
        (
            EXTEND.replace("[:, :, :end]", "[:, :, self.length : end]"),
            "only the 1 new keys come back",
        ),
        (EXTEND.replace("[:, :, :end]", ""), "the whole capacity of 12 comes back"),
        (
            EXTEND.replace("end = self.length + k.shape[2]", "end = self.length + k.shape[1]"),
            "the shapes do not fit at",
        ),
        (
            EXTEND.replace(
                "    self.keys[layer][",
                "    self.keys[layer], self.values[layer] = self.keys[layer].clone(), self.values[layer].clone()\n"
                "    self.keys[layer][",
            ),
            "the store has been built anew",
        ),
        (
            "def extend(self, layer, k, v):\n"
            "    if layer == len(self.keys):\n"
            "        self.keys.append(k)\n"
            "        self.values.append(v)\n"
            "    else:\n"
            "        self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)\n"
            "        self.values[layer] = torch.cat((self.values[layer], v), dim=2)\n"
            "    return self.keys[layer], self.values[layer]",
            "without it, every token copies all of it",
        ),
        (EXTEND.replace("if layer == len(self.keys)", "if not self.keys"), "IndexError"),
    ],
    "4.12": [
        ("def turn_matrix(name, tensor):\n    return tensor", "a matrix (outputs, inputs) of a block"),
        (
            "def turn_matrix(name, tensor):\n    return tensor.T if tensor.ndim == 2 else tensor",
            "an embedding is turned",
        ),
        (
            'def turn_matrix(name, tensor):\n    if name.startswith("blocks.") and tensor.ndim == 2:\n'
            "        return tensor.reshape(tensor.shape[1], tensor.shape[0])\n    return tensor",
            "reshape keeps their order",
        ),
        (
            'def turn_matrix(name, tensor):\n    if name.startswith("blocks.") and tensor.ndim == 2 '
            "and tensor.shape[0] != tensor.shape[1]:\n        return tensor.T\n    return tensor",
            "a square matrix stays as it was",
        ),
        (
            "def turn_matrix(name, tensor):\n"
            '    return tensor.flip(-1) if tensor.ndim == 1 else tensor.T if "blocks" in name else tensor',
            "a vector has changed",
        ),
    ],
    "4.13": [
        (
            WINDOW + "    return (distance >= 0) & (distance <= window)",
            "one too many: the window counts the token itself",
        ),
        (WINDOW + "    return (distance >= 0) & (distance < window - 1)", "one too few"),
        (WINDOW + "    return (distance > 0) & (distance < window)", "no token sees itself"),
        (WINDOW + "    return distance < window", "a token sees the future"),
        (WINDOW + "    return distance >= 0", "is the window used?"),
        (
            WINDOW.replace("arange(keys - queries, keys)", "arange(queries)")
            + "    return (distance >= 0) & (distance < window)",
            "look at the oldest keys",
        ),
        (WINDOW + "    return ((distance >= 0) & (distance < window)).T", "rows and columns are exchanged"),
        (WINDOW + "    return (distance <= 0) & (distance > -window)", "the mask is transposed"),
        (WINDOW + "    return ((distance >= 0) & (distance < window)).float()", "not bool"),
    ],
    "4.14": [
        (CROSS.replace("kv(memory)", "kv(x)"), "the memory is never read"),
        (CROSS.replace("q(x)", "q(memory)"), "the queries come from the memory"),
        (CROSS.replace("(q, k, v, memory_mask[:, None, None, :])", f"(q, {FROM_X}[0], v)"), "the keys come from x"),
        (CROSS.replace("(q, k, v, memory_mask[:, None, None, :])", f"(q, k, {FROM_X}[1])"), "the values come from x"),
        (CROSS.replace(", memory_mask[:, None, None, :]", ""), "memory_mask is ignored"),
        (CROSS.replace("[:, None, None, :]", "[:, None, :, None]"), "hides places of x"),
        (CROSS.replace("memory_mask[:,", "~memory_mask[:,"), "the real words are hidden"),
        (CROSS.replace("memory_mask[:, None, None, :]", "is_causal=True"), "no causal mask belongs here"),
        (CROSS.replace("None, :])", "None, :], scale=1.0)"), "the scores are not divided by sqrt(K)"),
        (CROSS.replace("None, :])", "None, :], scale=x.shape[-1] ** -0.5)"), "are divided by sqrt(D)"),
        (CROSS.replace("(q, k", "(q / q.shape[-1] ** 0.5, k"), "divided by sqrt(K) twice"),
        (CROSS.replace("k, v =", "v, k ="), "keys and values are swapped"),
        (CROSS.replace("merge_heads(mixed)", "mixed.reshape(x.shape)"), "joined without a transpose"),
        (CROSS.replace("self.out(merge_heads(mixed))", "merge_heads(mixed)"), "the output projection is forgotten"),
    ],
    "4.15": [
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
    "4.16": [
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
