"""Plausible wrong answers to the exercises of chapter 3, and words of the diagnosis that each has to get."""

# The right backward pass in plain steps, from which the wrong answers to 3.13 are made by changing one of them.
BACKWARD = (
    "def attend_backward(gradient, q, k, v, mixed, weights, factors, out):\n"
    "    root = math.sqrt(q.shape[-1])\n"
    "    kept = weights if factors is None else weights * factors\n"
    "    dP = gradient @ v.swapaxes(-1, -2)\n"
    "    dP = dP if factors is None else dP * factors\n"
    "    r = (gradient * mixed).sum(axis=-1, keepdims=True)\n"
    "    dS = weights * (dP - r)\n"
    "    np.matmul(dS, k / root, out=out[0])\n"
    "    np.matmul(dS.swapaxes(-1, -2), q / root, out=out[1])\n"
    "    np.matmul(kept.swapaxes(-1, -2), gradient, out=out[2])\n"
)

# The right multi-head attention in pieces, from which the wrong answers to 3.10 are made.
HEADS = "def forward(self, x, cache=None, layer=0, mask=None):\n"
QKV = "    q, k, v = split_heads(self.qkv(x), 3 * self.n_heads).chunk(3, dim=1)\n"
CACHE = "    if cache is not None:\n        k, v = cache.extend(layer, k, v)\n"
MIX = "    mixed = causal_attention(q, k, v, mask, self.dropout if self.training else 0.0)\n"
OUT = "    return self.residual_dropout(self.out(merge_heads(mixed)))"
BY_HAND = (
    "    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])\n"
    "    if mask is not None:\n        scores = scores.masked_fill(~mask, -math.inf)\n"
    "    mixed = scores.softmax(dim=-1) @ v\n"
)

# Right steps of exercises 3.1 and 3.2, from which their wrong answers are made by changing something.
LSTM_STEP = (
    "def lstm_step(x, state, w_x, w_h, bias):\n"
    "    h, c = state\n"
    "    i, f, g, o = (x @ w_x.T + h @ w_h.T + bias).chunk(4, dim=-1)\n"
    "    new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)\n"
    "    return torch.sigmoid(o) * torch.tanh(new), new\n"
)
ADDITIVE = (
    "def additive_scores(queries, keys, w_q, w_k, v):\n"
    "    q = (queries @ w_q.T)[..., :, None, :]\n"
    "    k = (keys @ w_k.T)[..., None, :, :]\n"
    "    return torch.tanh(q + k) @ v\n"
)

WRONG_ANSWERS = {
    "3.1": [
        (LSTM_STEP.replace("i, f, g, o =", "f, i, g, o ="), "the first block is the input gate"),
        (LSTM_STEP.replace("i, f, g, o =", "i, f, o, g ="), "taken from the last block"),
        (LSTM_STEP.replace("torch.sigmoid(i)", "torch.tanh(i)"), "a shut input gate subtracts"),
        (LSTM_STEP.replace("torch.tanh(g)", "torch.sigmoid(g)"), "went through a sigmoid"),
        (LSTM_STEP.replace("torch.tanh(g)", "g"), "the candidate did not go through a tanh"),
        (LSTM_STEP.replace("torch.sigmoid(f) * c + ", "c + torch.sigmoid(f) * "), "multiplies the old cell"),
        (LSTM_STEP.replace("torch.tanh(new)", "new"), "the tanh of the cell is missing"),
        (LSTM_STEP.replace("torch.tanh(new)", "torch.tanh(c)"), "made from the old cell"),
        (LSTM_STEP.replace("torch.sigmoid(o)", "torch.tanh(o)"), "the output gate is shut, and h is not 0"),
        (LSTM_STEP.replace("torch.tanh(new), new", "torch.tanh(new)"), "return a tuple of two tensors"),
        (LSTM_STEP.replace("return ", "return new, ").replace("tanh(new), new", "tanh(new)"), "in the wrong order"),
        (LSTM_STEP.replace(" + h @ w_h.T", ""), "the old h makes no difference"),
        (LSTM_STEP.replace("x @ w_x.T", "x @ w_x"), "the shapes do not fit"),
    ],
    "3.2": [
        (ADDITIVE.replace("torch.tanh(q + k)", "(q + k)"), "the tanh is missing"),
        (ADDITIVE.replace("torch.tanh(q + k)", "(torch.tanh(q) + torch.tanh(k))"), "inside of one tanh"),
        (ADDITIVE.replace("torch.tanh(q + k) @ v", "torch.tanh((q + k) @ v)"), "the tanh comes before"),
        (
            ADDITIVE.replace("torch.tanh(q + k) @ v", "(torch.tanh(q + k) @ v).softmax(dim=-1)"),
            "these are shares already",
        ),
        (ADDITIVE.replace("(q + k) @ v", "(q + k).sum(dim=-1)"), "a v of zeros gives scores"),
        (
            ADDITIVE.replace("return torch.tanh(q + k) @ v", "return (torch.tanh(q + k) * v).sum(dim=-2)"),
            "the sum runs over tokens",
        ),
        (ADDITIVE.replace("(q + k) @ v", "(q + k) * v"), "each pair still has A numbers"),
        (
            ADDITIVE.replace("[..., :, None, :]", "[..., None, :, :]", 1).replace(
                "w_k.T)[..., None, :, :]", "w_k.T)[..., :, None, :]"
            ),
            "the rows belong to the keys",
        ),
        (ADDITIVE.replace("q + k", "q * k"), "they are added, not multiplied"),
        (ADDITIVE.replace("[..., :, None, :]", "").replace("[..., None, :, :]", ""), "the shapes do not fit"),
    ],
    "3.3": [
        ("def softmax(scores):\n    return scores / scores.sum(dim=-1, keepdim=True)", "take exp first"),
        ("def softmax(scores):\n    return scores.exp() / scores.exp().sum()", "all rows together sum to 1"),
        (
            "def softmax(scores):\n    return scores.exp() / scores.exp().sum(dim=0, keepdim=True)",
            "the rows do not sum to 1",
        ),
        (
            "def softmax(scores):\n    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)",
            "two scores of 1000 give nan",
        ),
        (
            "def softmax(scores):\n    e = (scores - scores.max()).exp()\n    return e / e.sum(dim=-1, keepdim=True)",
            "each row's own largest score",
        ),
    ],
    "3.4": [
        ("def attention_scores(q, k):\n    return q @ k.transpose(-2, -1)", "the scores are not divided"),
        ("def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) / q.shape[-1]", "are divided by K"),
        (
            "def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2])",
            "the number of keys",
        ),
        ("def attention_scores(q, k):\n    return q @ k.T / math.sqrt(q.shape[-1])", "the shapes do not fit"),
        (
            "def attention_scores(q, k):\n    return k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1])",
            "the wrong way round",
        ),
        (
            "def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) * math.sqrt(q.shape[-1])",
            "are multiplied by sqrt(K)",
        ),
    ],
    "3.5": [
        (
            "def causal_mask(queries, keys, device=None):\n    return torch.ones(queries, keys).bool().triu(1)",
            "upside down",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n    return torch.ones(queries, keys).bool()",
            "sees the future",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n    return torch.ones(queries, keys).tril()",
            "not bool",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n"
            "    return torch.arange(keys) < torch.arange(keys - queries, keys)[:, None]",
            "< instead of <=",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n    return torch.ones(queries, keys).bool().tril()",
            "the queries are the last of the keys",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n"
            "    return torch.arange(keys - queries, keys)[:, None] <= torch.arange(keys)",
            "the mask is transposed",
        ),
        (
            "def causal_mask(queries, keys, device=None):\n"
            "    return torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None] + 1",
            "one token too far",
        ),
    ],
    "3.6": [
        (
            "def attention_weights(scores, mask=None):\n"
            "    weights = scores.softmax(dim=-1)\n    return weights if mask is None else weights * mask",
            "the future stays in the sum",
        ),
        (
            "def attention_weights(scores, mask=None):\n"
            "    if mask is not None:\n        scores = scores.masked_fill(~mask, 0)\n"
            "    return scores.softmax(dim=-1)",
            "a score of 0 is no small score",
        ),
        (
            "def attention_weights(scores, mask=None):\n    weights = scores.softmax(dim=-1)\n"
            "    if mask is not None:\n        weights = weights * mask\n"
            "    return weights / weights.sum(dim=-1, keepdim=True)",
            "zero and rescale is 0/0",
        ),
        (
            "def attention_weights(scores, mask=None):\n    if mask is not None:\n"
            "        scores = scores.masked_fill(~mask, -1e9)\n    return scores.softmax(dim=-2)",
            "the columns sum to 1",
        ),
        (
            "def attention_weights(scores, mask=None):\n    if mask is not None:\n"
            "        scores = scores.masked_fill_(~mask, -math.inf)\n    return scores.softmax(dim=-1)",
            "masked_fill, not masked_fill_",
        ),
        (
            "def attention_weights(scores, mask=None):\n    if mask is not None:\n"
            "        scores = scores.masked_fill(mask, -1e9)\n    return scores.softmax(dim=-1)",
            "True where one MAY look",
        ),
        (
            "def attention_weights(scores, mask=None):\n    if mask is not None:\n"
            "        scores = scores.masked_fill(~mask, -10)\n    return scores.softmax(dim=-1)",
            "a large negative score is not low enough",
        ),
    ],
    "3.7": [
        (
            "def padded_causal_mask(queries, keys, starts, device):\n    causal = causal_mask(queries, keys, device)\n"
            "    if starts is None:\n        return causal\n"
            "    return causal & (torch.arange(keys) >= starts[:, None])[:, None, None, :]",
            "a filler sees nothing at all",
        ),
        (
            "def padded_causal_mask(queries, keys, starts, device):\n    causal = causal_mask(queries, keys, device)\n"
            "    if starts is None:\n        return causal\n    columns = torch.arange(keys)\n"
            "    itself = columns == columns[keys - queries :, None]\n"
            "    return (causal & (columns > starts[:, None])[:, None, None, :]) | itself",
            "a real key is hidden",
        ),
        (
            "def padded_causal_mask(queries, keys, starts, device):\n    causal = causal_mask(queries, keys, device)\n"
            "    if starts is None:\n        return causal\n    columns = torch.arange(keys)\n"
            "    itself = columns == columns[keys - queries :, None]\n"
            "    real = columns >= starts[:, None]\n    return (real[:, None, None, :] | itself)",
            "a token sees the future",
        ),
        (
            "def padded_causal_mask(queries, keys, starts, device):\n    causal = causal_mask(queries, keys, device)\n"
            "    if starts is None:\n        return causal\n"
            "    return causal.expand(len(starts), 1, queries, keys)",
            "the padding is on the left",
        ),
        (
            "def padded_causal_mask(queries, keys, starts, device):\n    causal = causal_mask(queries, keys, device)\n"
            "    if starts is None:\n        return causal\n    columns = torch.arange(keys)\n"
            "    itself = columns == columns[keys - queries :, None]\n"
            "    return (causal & (columns >= starts[:, None])[:, None, :]) | itself",
            "the axis for the heads is missing",
        ),
    ],
    "3.8": [
        (
            "def split_heads(x, n_heads):\n    B, T, D = x.shape\n    return x.view(B, n_heads, T, D // n_heads)",
            "mixes tokens",
        ),
        (
            "def split_heads(x, n_heads):\n    B, T, D = x.shape\n    return x.view(B, T, n_heads, D // n_heads)",
            "the heads stand behind the tokens",
        ),
        (
            "def split_heads(x, n_heads):\n    B, T, D = x.shape\n"
            "    return x.view(B, T, D // n_heads, n_heads).permute(0, 3, 1, 2)",
            "every H-th column",
        ),
    ],
    "3.9": [
        (
            "def merge_heads(x):\n    B, H, T, K = x.shape\n    return x.reshape(B, T, H * K)",
            "tokens are mixed",
        ),
        ("def merge_heads(x):\n    return x.flatten(2)", "tokens and widths are joined"),
        (
            "def merge_heads(x):\n    B, H, T, K = x.shape\n    return x.permute(0, 2, 3, 1).reshape(B, T, H * K)",
            "the heads are interleaved",
        ),
        (
            "def merge_heads(x):\n    B, H, T, K = x.shape\n    return x.transpose(1, 2).view(B, T, H * K)",
            "the shapes do not fit",
        ),
    ],
    "3.10": [
        (
            HEADS
            + "    q, k, v = self.qkv(x).view(len(x), 3 * self.n_heads, x.shape[1], -1).chunk(3, dim=1)\n"
            + CACHE
            + MIX
            + OUT,
            "mixes tokens: split_heads",
        ),
        (
            HEADS + QKV + CACHE + MIX + "    return self.residual_dropout(self.out(mixed.reshape(x.shape)))",
            "joined without a transpose",
        ),
        (HEADS + QKV.replace("q, k, v", "k, q, v") + CACHE + MIX + OUT, "queries and keys are swapped"),
        (
            HEADS + "    wide = self.qkv(x)\n"
            "    q, k, v = split_heads(wide, self.n_heads).chunk(3, dim=-1)\n" + CACHE + MIX + OUT,
            "head by head",
        ),
        (
            HEADS + QKV + CACHE + MIX + "    return self.residual_dropout(merge_heads(mixed))",
            "the output projection is forgotten",
        ),
        (HEADS + QKV + CACHE + BY_HAND + OUT, "a token sees the future"),
        (
            HEADS + QKV + CACHE + "    past = torch.ones(q.shape[2], k.shape[2]).tril().bool()\n"
            "    mask = past if mask is None else mask\n"
            + BY_HAND.replace("math.sqrt(q.shape[-1])", "math.sqrt(x.shape[-1])")
            + OUT,
            "divided by sqrt(D)",
        ),
        (HEADS + QKV + CACHE + MIX.replace("mask", "None") + OUT, "the mask is ignored"),
        (
            HEADS + QKV + CACHE + "    mixed = causal_attention(q, k, v, mask, self.dropout)\n" + OUT,
            "although self.training is False",
        ),
        (
            HEADS + QKV + CACHE + "    mixed = causal_attention(q, k, v, mask)\n" + OUT,
            "in training, dropout does not act",
        ),
        (
            HEADS + QKV + CACHE + MIX + "    return self.out(self.residual_dropout(merge_heads(mixed)))",
            "has to act last",
        ),
        (HEADS + QKV + MIX + OUT, "the cache was not asked"),
    ],
    "3.11": [
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    earlier = same.tril(-1)\n"
            "    looked = (weights * earlier[:, None]).sum(dim=-1)\n"
            "    return looked.sum(dim=(-3, -1)) / earlier.any(dim=-1).sum()",
            "the key is the one AFTER it",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    return (weights * followed[:, None]).sum(dim=-1).mean(dim=(-3, -1))",
            "leave them out of the mean",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    looked = (weights * followed[:, None]).sum(dim=-1)\n"
            "    return looked.sum(dim=(-3, -1))",
            "divide by the number of queries",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    looked = (weights.transpose(-2, -1) * followed[:, None]).sum(dim=-1)\n"
            "    return looked.sum(dim=(-3, -1)) / followed.any(dim=-1).sum()",
            "the wrong way round",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = same.roll(1, dims=-1).tril()\n"
            "    looked = (weights * followed[:, None]).sum(dim=-1)\n"
            "    return looked.sum(dim=(-3, -1)) / followed.any(dim=-1).sum()",
            "nothing stands before column 0",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    looked = (weights * followed[:, None]).sum(dim=-1).sum(dim=-1)\n"
            "    return (looked / followed.any(dim=-1).sum(dim=-1)[:, None]).mean(dim=-2)",
            "one mean over the queries of all rows",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    last = followed.int().argmax(dim=-1)[:, None, :, None]\n"
            "    looked = weights.gather(-1, last.expand(*weights.shape[:-1], 1))[..., 0]\n"
            "    looked = looked * followed.any(dim=-1)[:, None]\n"
            "    return looked.sum(dim=(-3, -1)) / followed.any(dim=-1).sum()",
            "two followers",
        ),
        (
            "def induction_score(weights, ids):\n"
            "    same = ids[:, :, None] == ids[:, None, :]\n"
            "    followed = F.pad(same[:, :, :-1], (1, 0)).tril()\n"
            "    looked = (weights * followed[:, None]).sum(dim=-1)\n"
            "    return looked.sum() / followed.any(dim=-1).sum()",
            "one number for each head",
        ),
    ],
    "3.12": [
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    weights = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))\n"
            "    if mask is not None:\n        weights = weights * mask\n"
            "    weights = weights / weights.sum(axis=-1, keepdims=True)\n"
            "    kept = weights if factors is None else weights * factors\n"
            "    return np.matmul(kept, v, out=out), weights",
            "subtract each row's maximum",
        ),
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    scores = q @ k.swapaxes(-1, -2)\n"
            "    if mask is not None:\n        scores = np.where(mask, scores, -np.inf)\n"
            "    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    weights /= weights.sum(axis=-1, keepdims=True)\n"
            "    kept = weights if factors is None else weights * factors\n"
            "    return np.matmul(kept, v, out=out), weights",
            "the scores are not divided",
        ),
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])\n"
            "    if mask is not None:\n        scores = scores * mask\n"
            "    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    weights /= weights.sum(axis=-1, keepdims=True)\n"
            "    return np.matmul(weights, v, out=out), weights",
            "hidden keys get weight",
        ),
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])\n"
            "    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    weights /= weights.sum(axis=-1, keepdims=True)\n"
            "    if mask is not None:\n        weights = weights * mask\n"
            "    return np.matmul(weights, v, out=out), weights",
            "mask before the softmax",
        ),
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])\n"
            "    if mask is not None:\n        scores = np.where(mask, scores, -np.inf)\n"
            "    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    weights /= weights.sum(axis=-1, keepdims=True)\n"
            "    if factors is not None:\n        weights = weights * factors\n"
            "    return np.matmul(weights, v, out=out), weights",
            "return them without",
        ),
        (
            "def attend(q, k, v, mask=None, factors=None, out=None):\n"
            "    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])\n"
            "    if mask is not None:\n        scores = np.where(mask, scores, -np.inf)\n"
            "    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    weights /= weights.sum(axis=-1, keepdims=True)\n"
            "    kept = weights if factors is None else weights * factors\n"
            "    return kept @ v, weights",
            "`out` is not filled",
        ),
    ],
    "3.13": [
        (
            BACKWARD.replace(" - r)", ")"),
            "subtract r",
        ),
        (BACKWARD.replace(" / root", ""), "divide them as well"),
        (
            BACKWARD.replace("np.matmul(dS.swapaxes(-1, -2), q / root", "np.matmul(dS.swapaxes(-1, -2), q"),
            "that of q is not",
        ),
        (BACKWARD.replace("kept.swapaxes", "weights.swapaxes"), "the values were mixed with weights * factors"),
        (
            BACKWARD.replace("dP = dP if factors is None else dP * factors", "dP = dP"),
            "the factors multiply dP too",
        ),
        (BACKWARD.replace("dS.swapaxes(-1, -2), q", "dS, q"), "the shapes do not fit"),
        (BACKWARD.replace("dS = weights * (dP - r)", "weights *= dP - r\n    dS = weights"), "has changed"),
        (
            "def attend_backward(gradient, q, k, v, mixed, weights, factors, out):\n"
            "    return np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)",
            "is not filled",
        ),
    ],
}
