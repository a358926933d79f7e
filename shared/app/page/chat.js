const showToken = (token, turn, place) => {
  const made = make("span", token.picked ? "token picked" : "token", token.text);
  Object.assign(made, { role: "button", tabIndex: 0 });
  Object.assign(made.dataset, { turn, place });
  return made;
};

const showTurn = (turn, number) => {
  const answer = turn.tokens.map((token, place) => showToken(token, number, place));
  if (turn.writing) answer.push(make("span", "cursor"));
  const made = make("section", "turn",
    make("p", "you", make("span", "who", "you"), turn.message),
    make("p", "model", make("span", "who", "model"), ...answer));
  if (turn.note) made.append(make("p", "note", turn.note));
  return made;
};

const hint = "Nothing has been said yet. The model knows a small world of animals, villages and lanterns, and little else.";
const render = () => {
  const log = element.querySelector(".log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const turns = props.value.turns.map(showTurn);
  log.replaceChildren(...(turns.length ? turns : [make("p", "hint", hint)]));
  if (atEnd) log.scrollTop = log.scrollHeight;
};

// A click on a word, or Enter while it has the focus, tells Python which token of which turn it is.
const pick = (event) => {
  const token = event.target.closest(".token");
  if (token) trigger("select", { index: [Number(token.dataset.turn), Number(token.dataset.place)] });
};
element.addEventListener("click", pick);
element.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(event); });
watch("value", render);
render();
