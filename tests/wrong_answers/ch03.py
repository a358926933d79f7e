"""Plausible wrong answers to the exercises of chapter 3, and words of the diagnosis that each has to get."""

# The right backward pass in plain steps, from which the wrong answers to 3.9 are made by changing one of them.
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

WRONG_ANSWERS = {
    "3.1": [
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
    "3.2": [
        ("def attention_scores(q, k):\n    return q @ k.transpose(-2, -1)", "the scores are not divided"),
        ("def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) / q.shape[-1]", "are divided by K"),
        (
            "def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2])",
            "the number of keys",
        ),
        ("def attention_scores(q, k):\n    return q @ k.T / math.sqrt(q.shape[-1])", "the shapes do not fit"),
    ],
    "3.3": [
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
    ],
    "3.4": [
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
    ],
    "3.5": [
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
    "3.6": [
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
    ],
    "3.8": [
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
    "3.9": [
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
