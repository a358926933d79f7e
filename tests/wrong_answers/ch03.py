"""Plausible wrong answers to the exercises of chapter 3, and words of the diagnosis that each has to get."""

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
}
