"""What people write first in chapter 2, and the words that the diagnosis must hold."""

WRONG_ANSWERS = {
    "2.1": [
        (
            """
def count_pairs(words, counts):
    pair_counts = defaultdict(int)
    for ids, count in zip(words, counts):
        for left, right in pairwise(ids):
            pair_counts[right, left] += count
    return dict(pair_counts)
""",
            "the wrong way round",
        ),
        (
            """
def count_pairs(words, counts):
    pair_counts = {}
    for ids, count in zip(words, counts):
        for i in range(len(ids) - 2):
            pair = (ids[i], ids[i + 1])
            pair_counts[pair] = pair_counts.get(pair, 0) + count
    return pair_counts
""",
            "lacks its last pair",
        ),
        (
            """
def count_pairs(words, counts):
    pair_counts = defaultdict(int)
    for pair in pairwise([token for ids, count in zip(words, counts) for token in list(ids) * count]):
        pair_counts[pair] += 1
    return dict(pair_counts)
""",
            "reaches from the end of one word into the next",
        ),
        (
            """
def count_pairs(words, counts):
    pair_counts = defaultdict(int)
    for ids in words:
        for pair in pairwise(ids):
            pair_counts[pair] += 1
    return dict(pair_counts)
""",
            "counts only once: add its count",
        ),
        (
            """
def count_pairs(words, counts):
    pair_counts = defaultdict(int)
    for ids, count in zip(words, counts):
        for pair in set(pairwise(ids)):
            pair_counts[pair] += count
    return dict(pair_counts)
""",
            "every place counts",
        ),
        (
            """
def count_pairs(words, counts):
    pair_counts = {}
    for ids, count in zip(words, counts):
        own = defaultdict(int)
        for pair in pairwise(ids):
            own[pair] += count
        pair_counts.update(own)
    return pair_counts
""",
            "their counts must add up",
        ),
    ],
    "2.2": [
        (
            """
def merge_pair(ids, pair, new_id):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return [*ids[:i], new_id, *ids[i + 2 :]]
    return list(ids)
""",
            "only the first occurrence",
        ),
        (
            """
def merge_pair(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
""",
            "the last token is lost",
        ),
        (
            """
def merge_pair(ids, pair, new_id):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new_id]
        i += 1
    return ids
""",
            "has been changed",
        ),
        (
            """
def merge_pair(ids, pair, new_id):
    merged = []
    for token in ids:
        if merged and {token, merged[-1]} == set(pair):
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged
""",
            "the order counts",
        ),
        (
            """
def merge_pair(ids, pair, new_id):
    merged = []
    for token in reversed(ids):
        if merged and (token, merged[-1]) == pair:
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged[::-1]
""",
            "merged from the right",
        ),
        (
            """
def merge_pair(ids, pair, new_id):
    merged = []
    for i, token in enumerate(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
        elif i == 0 or (ids[i - 1], token) != pair:
            merged.append(token)
    return merged
""",
            "used for two merges",
        ),
    ],
    "2.3": [
        (
            """
def encode_bytes(word, ranks):
    ids = []
    while word:
        size = max(size for size in range(1, len(word) + 1) if word[:size] in ranks)
        ids.append(ranks[word[:size]])
        word = word[size:]
    return ids
""",
            "the longest token from the left",
        ),
        (
            """
def encode_bytes(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    i = 0
    while i < len(parts) - 1:
        if parts[i] + parts[i + 1] in ranks:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i = 0
        else:
            i += 1
    return [ranks[part] for part in parts]
""",
            "the first neighbours that it meets",
        ),
        (
            """
def encode_bytes(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    options = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
    if options:
        _, i = min(options)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]
""",
            "it stops too early",
        ),
        (
            """
def encode_bytes(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    while options := [(ranks[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        i = -min(options)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]
""",
            "the leftmost comes first",
        ),
        (
            """
def encode_bytes(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    while options := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, i = min(options)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
""",
            "holds bytes, not ids",
        ),
        ("def encode_bytes(word, ranks):\n    return list(word)", "but nothing is merged"),
    ],
    "2.4": [
        (
            """
def render_conversation(tokenizer, conversation):
    ids, is_response = [], []
    for exchange in conversation:
        question = render_message(tokenizer, USER, exchange.user)
        answer = render_message(tokenizer, ASSISTANT, exchange.assistant)
        ids += question + answer
        is_response += [False] * len(question) + [True] * len(answer)
    return ids, is_response
""",
            "the program writes it",
        ),
        (
            """
def render_conversation(tokenizer, conversation):
    ids, is_response = [], []
    for exchange in conversation:
        question = render_message(tokenizer, USER, exchange.user)
        answer = render_message(tokenizer, ASSISTANT, exchange.assistant)
        ids += question + answer
        is_response += [False] * (len(question) + 1) + [True] * (len(answer) - 2) + [False]
    return ids, is_response
""",
            "never learn to stop",
        ),
        (
            """
def render_conversation(tokenizer, conversation):
    ids, is_response = [], []
    for exchange in conversation:
        ids += render_message(tokenizer, USER, exchange.user) + render_message(tokenizer, ASSISTANT, exchange.assistant)
    return ids, [True] * len(ids)
""",
            "everything is marked",
        ),
        (
            """
def render_conversation(tokenizer, conversation):
    ids, is_response = [], []
    for exchange in conversation:
        question = render_message(tokenizer, USER, exchange.user)
        answer = render_message(tokenizer, ASSISTANT, exchange.assistant)
        ids = question + answer
        is_response = [False] * (len(question) + 1) + [True] * (len(answer) - 1)
    return ids, is_response
""",
            "not every question and answer",
        ),
        (
            """
def render_conversation(tokenizer, conversation):
    ids, is_response = [], []
    for exchange in conversation:
        question = render_message(tokenizer, USER, exchange.user)
        answer = render_message(tokenizer, ASSISTANT, exchange.assistant)
        ids += question + answer
        is_response += [False] * len(question) + [True] * (len(answer) - 1)
    return ids, is_response
""",
            "one for each id",
        ),
    ],
    "2.5": [
        (
            """
def plan_packing(lengths, room):
    if lengths and max(lengths) > room:
        raise CourseError("too long")
    rows, gaps = [], []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row = next((row for row, gap in enumerate(gaps) if gap >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            gaps.append(room)
        rows[row].append(item)
        gaps[row] -= lengths[item]
    return [sorted(row) for row in rows]
""",
            "not in the tightest row",
        ),
        (
            """
def plan_packing(lengths, room):
    rows, gap = [], 0
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        if gap < lengths[item]:
            rows.append([])
            gap = room
        rows[-1].append(item)
        gap -= lengths[item]
    return [sorted(row) for row in rows]
""",
            "does it look at all the others",
        ),
        (
            """
def plan_packing(lengths, room):
    rows, gaps = [], []
    for item in range(len(lengths)):
        fitting = [row for row, gap in enumerate(gaps) if gap >= lengths[item]]
        row = min(fitting, key=lambda row: gaps[row]) if fitting else len(rows)
        if row == len(rows):
            rows.append([])
            gaps.append(room)
        rows[row].append(item)
        gaps[row] -= lengths[item]
    return rows
""",
            "from the longest to the shortest",
        ),
        (
            """
def plan_packing(lengths, room):
    rows, gaps = [], []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, gap in enumerate(gaps) if gap >= length]
        row = min(fitting, key=lambda row: gaps[row]) if fitting else len(rows)
        if row == len(rows):
            rows.append([])
            gaps.append(room)
        rows[row].append(length)
        gaps[row] -= length
    return rows
""",
            "not their lengths",
        ),
        (
            """
def plan_packing(lengths, room):
    rows, gaps = [], []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = [row for row, gap in enumerate(gaps) if gap >= lengths[item]]
        row = min(fitting, key=lambda row: gaps[row]) if fitting else len(rows)
        if row == len(rows):
            rows.append([])
            gaps.append(room)
        rows[row].append(item)
        gaps[row] -= lengths[item]
    return [sorted(row) for row in rows]
""",
            "must be a CourseError",
        ),
    ],
    "2.6": [
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    return np.random.default_rng().integers(n_rows, size=batch_size)
""",
            "asked twice for the same step",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    return row_order(seed, 0, n_rows)[:batch_size]
""",
            "every step gets the same rows",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    return np.arange(step * batch_size, (step + 1) * batch_size) % n_rows
""",
            "in the order of the file",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    places = np.arange(step, step + batch_size)
    return np.array([row_order(seed, int(place // n_rows), n_rows)[place % n_rows] for place in places])
""",
            "neighbouring steps overlap",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    return np.random.default_rng([seed, step]).integers(n_rows, size=batch_size)
""",
            "the first epoch does not give every row once",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    return row_order(seed, 0, n_rows)[np.arange(step * batch_size, (step + 1) * batch_size) % n_rows]
""",
            "each epoch has the same order",
        ),
        (
            """
def rows_of_step(step, batch_size, n_rows, seed):
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return row_order(seed, int(places[0] // n_rows), n_rows)[places % n_rows]
""",
            "may end in the next",
        ),
    ],
    "2.7": [
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
""",
            "paired with its neighbour",
        ),
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
""",
            "the other way round",
        ),
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second * cos + first * sin, first * cos - second * sin), dim=-1)
""",
            "have changed places",
        ),
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos, second * cos + first * sin), dim=-1)
""",
            "changed its length",
        ),
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    first *= cos
    first -= second * sin
    return torch.cat((first, second * cos + first * sin), dim=-1)
""",
            "the input has been changed",
        ),
        (
            """
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos[1] - second * sin[1], second * cos[1] + first * sin[1]), dim=-1)
""",
            "position 0 has the angle 0",
        ),
    ],
    "2.8": [
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return centres, places[near]
""",
            "no ids of the sentence",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)
    offsets = np.arange(-window, window + 1)
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "paired with itself",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "counts from the end",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)
    offsets = np.arange(1, window + 1)
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "neighbour on its left",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = np.full(tokens, window)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "every centre looks",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, max(2, window), tokens)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "leaves out its end",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[places[near]], sentence[centres]
""",
            "to one side than to the other",
        ),
        (
            """
def skip_gram_pairs(sentence, window, rng):
    tokens = len(sentence)
    reach = np.random.default_rng().integers(1, window + 1, tokens)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    places = np.arange(tokens)[:, None] + offsets
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)
    centres, _ = np.nonzero(near)
    return sentence[centres], sentence[places[near]]
""",
            "draw from `rng` only",
        ),
    ],
    "2.9": [
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "turn the sign of its score",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "the loss is negative",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum()) / len(centre)
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "it must be their sum",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(np.log(sigmoid(score)).sum() + np.log(sigmoid(-noise_scores)).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "use log_sigmoid",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "lacks what the noise adds",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score))[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * centre[:, None, :]
""",
            "when near is nudged",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, for_centre, error * centre, noise_errors[:, :, None] * noise
""",
            "when a noise word is nudged",
        ),
        (
            """
def negative_sampling(centre, near, noise):
    score = np.einsum("pd,pd->p", centre, near)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]
    noise_errors = sigmoid(noise_scores)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)
    return loss, -for_centre, -error * centre, -noise_errors[:, :, None] * centre[:, None, :]
""",
            "point downhill",
        ),
    ],
}
