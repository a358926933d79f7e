"""Plausible wrong answers to the exercises of chapter 6, each with words of the diagnosis that it must get."""

WRONG_ANSWERS = {
    "6.1": [
        (
            """def last_real(hidden, lengths):
    return hidden[:, -1]""",
            "behind a shorter text",
        ),
        (
            """def last_real(hidden, lengths):
    return hidden[torch.arange(len(hidden)), lengths]""",
            "one column too far",
        ),
        (
            """def last_real(hidden, lengths):
    return hidden[:, lengths - 1]""",
            "pair each row",
        ),
        (
            """def last_real(hidden, lengths):
    return hidden.mean(dim=1)""",
            "the mean over all columns",
        ),
        (
            """def last_real(hidden, lengths):
    real = torch.arange(hidden.shape[1]) < lengths[:, None]
    return (hidden * real[..., None]).sum(dim=1) / lengths[:, None]""",
            "the mean over the real tokens",
        ),
        (
            """def last_real(hidden, lengths):
    return hidden[torch.arange(len(hidden)).flip(0), lengths.flip(0) - 1]""",
            "rows are mixed up",
        ),
        (
            """def last_real(hidden, lengths):
    return hidden[:, lengths.max() - 1]""",
            "in one column",
        ),
    ],
    "6.2": [
        (
            """def keep_what_fits(tokenizer, conversation, room):
    used = 0
    for kept, exchange in enumerate(conversation):
        used += len(render_conversation(tokenizer, [exchange])[0])
        if used >= room:
            return conversation[:kept]
    return conversation""",
            "compare with >, not >=",
        ),
        (
            """def keep_what_fits(tokenizer, conversation, room):
    while conversation and len(render_conversation(tokenizer, conversation)[0]) > room:
        conversation = conversation[1:]
    return conversation""",
            "the beginning was cut",
        ),
        (
            """def keep_what_fits(tokenizer, conversation, room):
    used = 0
    for kept, exchange in enumerate(conversation):
        used += len(tokenizer.encode(exchange.user)) + len(tokenizer.encode(exchange.assistant))
        if used > room:
            return conversation[:kept]
    return conversation""",
            "do the template's tokens count?",
        ),
        (
            """def keep_what_fits(tokenizer, conversation, room):
    kept, used = [], 0
    for exchange in conversation:
        length = len(render_conversation(tokenizer, [exchange])[0])
        if used + length <= room:
            kept.append(exchange)
            used += length
    return kept""",
            "left out in the middle",
        ),
    ],
    "6.3": [
        (
            """def mask_questions(tokenizer, conversations, room):
    documents = [render_conversation(tokenizer, conversation)[0] for conversation in conversations]
    return documents, [[True] * len(ids) for ids in documents]""",
            "every token is a target",
        ),
        (
            """def mask_questions(tokenizer, conversations, room):
    documents, masks = [], []
    for conversation in conversations:
        ids, is_response = render_conversation(tokenizer, keep_what_fits(tokenizer, conversation, room))
        if ids:
            documents.append(ids)
            masks.append([not mark for mark in is_response])
    return documents, masks""",
            "the mask is inverted",
        ),
        (
            """def mask_questions(tokenizer, conversations, room):
    documents, masks = [], []
    for conversation in conversations:
        ids, is_response = render_conversation(tokenizer, keep_what_fits(tokenizer, conversation, room))
        if ids:
            documents.append(ids)
            masks.append(is_response[1:] + [False])
    return documents, masks""",
            "<|assistant|> is a target",
        ),
        (
            """def mask_questions(tokenizer, conversations, room):
    documents, masks = [], []
    for conversation in conversations:
        ids, is_response = render_conversation(tokenizer, keep_what_fits(tokenizer, conversation, room))
        if ids:
            documents.append(ids)
            masks.append([mark and token < 256 for token, mark in zip(ids, is_response)])
    return documents, masks""",
            "never learns to stop",
        ),
        (
            """def mask_questions(tokenizer, conversations, room):
    pairs = [render_conversation(tokenizer, keep_what_fits(tokenizer, talk, room)) for talk in conversations]
    return [ids for ids, _ in pairs], [mask for _, mask in pairs]""",
            "an empty document",
        ),
        (
            """def mask_questions(tokenizer, conversations, room):
    pairs = [render_conversation(tokenizer, talk) for talk in conversations]
    return [ids for ids, _ in pairs], [mask for _, mask in pairs]""",
            "more tokens than the room",
        ),
    ],
    "6.4": [
        ("def forward(self, x):\n    return self.base(x)", "the correction has no effect"),
        ("def forward(self, x):\n    return self.scale * (x @ self.A.T @ self.B.T)", "the frozen layer is missing"),
        ("def forward(self, x):\n    return self.base(x) + x @ self.A.T @ self.B.T", "the scale, alpha / rank"),
        (
            "def forward(self, x):\n    return self.scale * (self.base(x) + x @ self.A.T @ self.B.T)",
            "multiplies the frozen layer",
        ),
        (
            "def forward(self, x):\n    return x @ (self.base.weight + self.scale * self.B @ self.A).T",
            "the bias of the frozen layer is lost",
        ),
    ],
    "6.5": [
        (
            "def merged_weight(layer):\n    return layer.base.weight + layer.scale * (layer.B @ layer.A).T",
            "the correction is transposed",
        ),
        ("def merged_weight(layer):\n    return layer.scale * layer.B @ layer.A", "the frozen matrix is missing"),
        ("def merged_weight(layer):\n    return layer.base.weight + layer.B @ layer.A", "the scale, alpha / rank"),
        (
            "def merged_weight(layer):\n    return layer.scale * (layer.base.weight + layer.B @ layer.A)",
            "multiplies the frozen matrix",
        ),
        ("def merged_weight(layer):\n    return layer.base.weight", "does not do what the layer"),
    ],
    "6.6": [
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return -logsigmoid(beta * (policy_chosen - policy_rejected))""",
            "the reference is not used",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_rejected - reference_rejected) - (policy_chosen - reference_chosen)
    return -logsigmoid(beta * gain)""",
            "is the sign flipped?",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -beta * logsigmoid(gain)""",
            "inside the sigmoid",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return 1 - (beta * gain).sigmoid()""",
            "minus its logarithm",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -logsigmoid(beta * gain).mean()""",
            "without a mean",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_rejected) - (policy_rejected - reference_chosen)
    return -logsigmoid(beta * gain)""",
            "the reference's two are swapped",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -(beta * gain).sigmoid().log()""",
            "use logsigmoid",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -logsigmoid(gain)""",
            "is it used?",
        ),
        (
            """def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return -logsigmoid(beta * (policy_chosen - reference_chosen))""",
            "is it left out?",
        ),
    ],
    "6.7": [
        (
            """def fit_prompt(tokenizer, history, message, room):
    ids = render_prompt(tokenizer, history, message)
    return Prompt(ids[-room:], tokens_cut=max(0, len(ids) - room))""",
            "in the middle of an exchange",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    for left_out in range(len(history) + 1):
        ids = render_prompt(tokenizer, history[: len(history) - left_out], message)
        if len(ids) <= room:
            return Prompt(ids, exchanges_left_out=left_out)
    return Prompt(ids, exchanges_left_out=len(history))""",
            "leave out the oldest",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    for left_out in range(len(history) + 1):
        ids = render_prompt(tokenizer, history[left_out:], message)
        if len(ids) <= room:
            return Prompt(ids)
    return Prompt(ids[-room:])""",
            "but the Prompt says 0",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    ids = render_prompt(tokenizer, history, message)
    if len(ids) <= room:
        return Prompt(ids)
    return Prompt(render_prompt(tokenizer, [], message), exchanges_left_out=len(history))""",
            "more exchanges were left out than had to be",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    for left_out in range(len(history) + 1):
        ids = render_prompt(tokenizer, history[left_out:], message)
        if len(ids) <= room:
            return Prompt(ids, exchanges_left_out=left_out)
    return Prompt(ids[-room:], exchanges_left_out=len(history), tokens_cut=len(ids) - room)""",
            "the <|user|> in front has to stay",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    for left_out in range(len(history) + 1):
        ids = render_prompt(tokenizer, history[left_out:], message)
        if len(ids) <= room:
            return Prompt(ids, exchanges_left_out=left_out)
    return Prompt([*ids[: room - 2], *ids[-2:]], exchanges_left_out=len(history), tokens_cut=len(ids) - room)""",
            "the end of the message was cut",
        ),
        (
            """def fit_prompt(tokenizer, history, message, room):
    for left_out in range(len(history) + 1):
        ids = render_prompt(tokenizer, history[left_out:], message)
        if len(ids) <= room:
            return Prompt(ids, exchanges_left_out=left_out)
    cut = [ids[0], *ids[len(ids) - room + 1 :]]
    return Prompt(cut, exchanges_left_out=len(history), tokens_cut=len(ids) - room)""",
            "raise a CourseError",
        ),
    ],
    "6.8": [
        (
            """def decode_stream(tokenizer, ids):
    for token in ids:
        yield tokenizer.decode([token])""",
            "was cut up",
        ),
        (
            """def decode_stream(tokenizer, ids):
    yield tokenizer.decode(list(ids))""",
            "yield while the ids arrive",
        ),
        (
            """def decode_stream(tokenizer, ids):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)""",
            "an empty piece",
        ),
        (
            """def decode_stream(tokenizer, ids):
    waiting = b""
    for token in ids:
        waiting += tokenizer.decode_bytes([token])
        try:
            text = waiting.decode("utf-8")
        except UnicodeDecodeError:
            continue
        waiting = b""
        yield text""",
            "nothing more came",
        ),
        (
            """def decode_stream(tokenizer, ids):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    for token in ids:
        piece = decoder.decode(tokenizer.decode_bytes([token]))
        if piece:
            yield piece""",
            "vanished",
        ),
        (
            """def decode_stream(tokenizer, ids):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        piece = decoder.decode(tokenizer.decode_bytes([token]))
        if piece:
            yield piece""",
            "tell the decoder that it is the end",
        ),
    ],
    "6.9": [
        (
            """def wilson_interval(right, n, z=1.96):
    if n == 0:
        return 0.0, 1.0
    share = right / n
    half = z * math.sqrt(share * (1 - share) / n)
    return max(0.0, share - half), min(1.0, share + half)""",
            "the naive interval",
        ),
        (
            """def wilson_interval(right, n, z=1.96):
    share = right / max(1, n)
    spread = z * z / max(1, n)
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / max(1, n) + spread / (4 * max(1, n)))
    return max(0.0, middle - half), min(1.0, middle + half)""",
            "nothing is known",
        ),
        (
            """def wilson_interval(right, n, z=1.96):
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, share - half), min(1.0, share + half)""",
            "towards one half",
        ),
        (
            """def wilson_interval(right, n, z=1.96):
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, 1 / n
    middle = (share + spread / 2) / (1 + spread)
    half = 1 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)""",
            "is z missing?",
        ),
        (
            """def wilson_interval(right, n, z=1.96):
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n)
    return max(0.0, middle - half), min(1.0, middle + half)""",
            "does not solve",
        ),
    ],
    "6.10": [
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().max() / limit).clamp(min=1e-30).reshape(1, 1)
    return torch.round(weight / scales).to(torch.int8), scales""",
            "give each row its own",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.amax(dim=1, keepdim=True) / limit).clamp(min=1e-30)
    return torch.round(weight / scales).to(torch.int32).to(torch.int8), scales""",
            "take the largest absolute value, not the largest",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / limit).clamp(min=1e-30)
    return (weight / scales).to(torch.int8), scales""",
            "do not cut off",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / (limit + 1)).clamp(min=1e-30)
    return torch.round(weight / scales).to(torch.int32).to(torch.int8), scales""",
            "wrapped around to -128",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=0, keepdim=True) / limit).clamp(min=1e-30)
    return torch.round(weight / scales).to(torch.int8), scales""",
            "along dim=1",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = weight.abs().amax(dim=1, keepdim=True) / limit
    return torch.round(weight / scales).to(torch.int8), scales""",
            "clamp the scales",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-30)
    return torch.round(weight / scales).to(torch.int8), scales""",
            "is bits used?",
        ),
        (
            """def quantize_rows(weight, bits=8):
    if not 2 <= bits <= 8 or weight.ndim != 2 or not weight.isfinite().all():
        raise CourseError("no")
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / limit).clamp(min=1e-30)
    return torch.round(weight / scales), scales""",
            "nothing is saved",
        ),
        (
            """def quantize_rows(weight, bits=8):
    limit = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / limit).clamp(min=1e-30)
    return torch.round(weight / scales).to(torch.int8), scales""",
            "was accepted",
        ),
    ],
}
