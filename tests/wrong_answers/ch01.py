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
}
