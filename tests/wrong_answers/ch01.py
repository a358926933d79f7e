"""Mistakes that people make in chapter 1, and words of the diagnosis that each must get."""

WRONG_ANSWERS = {
    "1.1": [
        ("def perplexity(nats_per_token):\n    return 2**nats_per_token", "fits losses in bits"),
        ("def perplexity(nats_per_token):\n    return math.exp(-nats_per_token)", "the probability of one token"),
        ("def perplexity(nats_per_token):\n    return nats_per_token", "no doubt"),
        ("def perplexity(nats_per_token):\n    return 1 + nats_per_token", "the number of equally likely tokens"),
        ("def perplexity(nats_per_token):\n    math.exp(nats_per_token)", "is a `return` missing"),
    ],
    "1.2": [
        ("def bits_per_byte(nats, n_bytes):\n    return nats / n_bytes", "still have to become bits"),
        ("def bits_per_byte(nats, n_bytes):\n    return nats * math.log(2) / n_bytes", "multiplied by ln 2"),
        ("def bits_per_byte(nats, n_bytes):\n    return nats / math.log(2)", "bits of the whole text"),
        ("def bits_per_byte(nats, n_bytes):\n    return n_bytes / (nats / math.log(2))", "upside down"),
        ("def bits_per_byte(nats, n_bytes):\n    return nats / math.log(10) / n_bytes", "that takes"),
    ],
    "1.3": [
        ("def silu(x):\n    return torch.sigmoid(x)", "the gate alone"),
        ("def silu(x):\n    return x * torch.sigmoid(-x)", "wide open"),
        ("def silu(x):\n    return F.relu(x)", "closes gradually"),
        ("def silu(x):\n    return x", "x itself: the gate must be shut"),
        ("def silu(x):\n    return x * torch.sigmoid(1.702 * x)", "0.7311"),
        ("def silu(x):\n    return x.mul_(torch.sigmoid(x))", "changed its input"),
    ],
    "1.4": [
        ("def relu_squared(x):\n    return x.square()", "-3 became 9"),
        ("def relu_squared(x):\n    return F.relu(x)", "the square is missing"),
        ("def relu_squared(x):\n    return x * x.abs()", "every negative number"),
        ("def relu_squared(x):\n    return 2 * F.relu(x)", "must become its square"),
        ("def relu_squared(x):\n    return F.relu(x).detach().square()", "no gradient"),
        ("def relu_squared(x):\n    return x.clamp_(min=0).square()", "changed its input"),
    ],
    "1.5": [
        ("def unbroadcast(gradient, shape):\n    return gradient", "it came back unsummed"),
        ("def unbroadcast(gradient, shape):\n    return gradient.sum(axis=0)", "that was not broadcast"),
        (
            "def unbroadcast(gradient, shape):\n"
            "    return gradient.sum(axis=0) if gradient.ndim > len(shape) else gradient",
            "one axis in front was summed",
        ),
        (
            "def unbroadcast(gradient, shape):\n    return gradient.sum(axis=tuple(range(len(shape), gradient.ndim)))",
            "lined up from the right",
        ),
        (
            "def unbroadcast(gradient, shape):\n    return gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))",
            "is not summed over",
        ),
        (
            "def unbroadcast(gradient, shape):\n"
            "    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))\n"
            "    return gradient.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1))",
            "the axis of size 1 is gone",
        ),
        (
            "def unbroadcast(gradient, shape):\n"
            "    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))\n"
            "    ones = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)\n"
            "    return gradient.mean(axis=ones, keepdims=True)",
            "every use has to be counted once",
        ),
        (
            "def unbroadcast(gradient, shape):\n"
            "    if shape == ():\n        return gradient.sum()\n"
            "    gradient = gradient.mean(axis=tuple(range(gradient.ndim - len(shape))))\n"
            "    ones = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)\n"
            "    return gradient.mean(axis=ones, keepdims=True)",
            "this is the mean over the uses",
        ),
    ],
    "1.6": [
        (
            "def sum_by_id(rows, ids):\n"
            "    different, places = np.unique(ids, return_inverse=True)\n"
            "    sums = np.zeros((len(different), rows.shape[1]))\n"
            "    sums[places] += rows\n"
            "    return different, sums",
            "only the last counts",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    different, starts = np.unique(ids, return_index=True)\n"
            "    return different, rows[starts]",
            "only the first counts",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    different, starts = np.unique(ids, return_index=True)\n"
            "    return different, np.add.reduceat(rows, starts, axis=0)",
            "other rows got into the sum",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    different, starts = np.unique(np.sort(ids), return_index=True)\n"
            "    return different, np.add.reduceat(rows[np.argsort(-ids)], starts, axis=0)",
            "yours holds other rows",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    different, places, counts = np.unique(ids, return_inverse=True, return_counts=True)\n"
            "    sums = np.zeros((len(different), rows.shape[1]))\n"
            "    np.add.at(sums, places, rows)\n"
            "    return different, sums / counts[:, None]",
            "the mean of the rows",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    sums = np.zeros((ids.max() + 1, rows.shape[1]))\n"
            "    np.add.at(sums, ids, rows)\n"
            "    return np.arange(ids.max() + 1), sums",
            "occur nowhere",
        ),
        (
            "def sum_by_id(rows, ids):\n"
            "    different = np.array(list(dict.fromkeys(ids.tolist())))\n"
            "    return different, np.stack([rows[ids == id].sum(axis=0) for id in different])",
            "in another order",
        ),
    ],
}
