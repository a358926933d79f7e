const showCandidate = (candidate) => {
  const bar = make("span", "");
  bar.style.width = `${candidate.width}%`;
  return make("tr", candidate.chosen ? "chosen" : "",
    make("td", "word", chip(candidate.text)), make("td", "bar", bar), make("td", "number", candidate.percent));
};

const showHead = (head) => {
  const most = head.most.flatMap((word) => [" ", make("span", "look", chip(word.text), ` ${word.percent}`)]);
  const words = head.words.map((word) => {
    const made = make("span", "seen", word.text);
    made.style.setProperty("--weight", word.shade);
    return made;
  });
  return make("details", "", make("summary", "", make("b", "", head.name), ...most), make("p", "read", ...words));
};

const showLook = (look) => [
  make("p", "", "The model wrote ", chip(look.chosen.text), ` and had given it ${look.chosen.percent}.`),
  make("h3", "", "What else it might have written"),
  make("table", "bars", ...look.candidates.map(showCandidate)),
  make("h3", "", "Where each head looked when it chose"),
  ...look.heads.map(showHead),
  make("details", "",
    make("summary", "", make("b", "", "What it had read"), `: ${look.tokens.length} tokens with their ids`),
    make("p", "ids", ...look.tokens.map((token) => chip(token.text, make("small", "", String(token.id)))))),
];

const hint = "Click a word of an answer. You will see what else the model might have written there, "
  + "where each of its heads looked back, and what it had read, token by token.";
const render = () => {
  const look = props.value;
  const content = look.empty ? [make("p", "hint", hint)] : showLook(look);
  element.querySelector(".glass").replaceChildren(make("h2", "", "Glass box"), ...content);
};
watch("value", render);
render();
