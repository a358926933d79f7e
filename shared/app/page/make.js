// What the page shows is put together from elements whose text is set as text: nothing that the model or the user
// writes is ever read as HTML or as code.
const make = (tag, className, ...children) => {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
};
const chip = (text, ...more) => make("span", "chip", text, ...more);
