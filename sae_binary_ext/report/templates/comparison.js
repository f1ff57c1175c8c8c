// Latents: chosen by coder, searched, sorted, and shown one at a time.
const coders = JSON.parse(document.getElementById("data").textContent);
const [coder, search, order, list, count, shown] =
  ["coder", "search", "order", "list", "count", "latent"].map((id) => document.getElementById(id));
const ORDERS = {
  falling: (one, two) => two.rate - one.rate,
  rising: (one, two) => one.rate - two.rate,
  number: (one, two) => one.latent - two.latent,
};
const LONGEST_LIST = 1000;

coder.append(...Object.keys(coders).map((name) => element("option", name)));
for (const control of [coder, search, order]) {
  control.addEventListener("input", refresh);
  control.addEventListener("change", refresh);
}
refresh();

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function matches(latent, wanted) {
  if (wanted === "" || String(latent.latent) === wanted) return true;
  const texts = latent.contexts.map((tokens) => tokens.map(([text]) => text).join(""));
  return [...texts, ...latent.promoted].some((text) => text.toLowerCase().includes(wanted));
}

function refresh() {
  const wanted = search.value.trim().toLowerCase();
  const found = coders[coder.value].filter((latent) => matches(latent, wanted));
  found.sort(ORDERS[order.value]);
  count.textContent = `${found.length} of ${coders[coder.value].length} latents`;
  list.replaceChildren(...found.slice(0, LONGEST_LIST).map(entry));
  if (found.length) open(found[0]);
  else shown.replaceChildren(element("p", "No latent has this in its text."));
}

function entry(latent) {
  const button = element("button", `${latent.latent} · ${percent(latent.rate)}`);
  button.dataset.latent = latent.latent;
  button.addEventListener("click", () => open(latent));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function marked(text) {
  // A line's end alone would show no mark.
  return element("mark", text.replaceAll("\n", "↵\n"));
}

function percent(rate) {
  return `${(100 * rate).toPrecision(2)}% of tokens`;
}

function open(latent) {
  for (const button of list.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.latent === String(latent.latent));
  }
  const promoted = element("p", latent.promoted.length ? "Promotes " : "");
  promoted.append(...latent.promoted.map((token) => element("code", token)));
  const like = element("p", latent.matches.length ? "Fires most like " : "");
  like.append(...latent.matches.map(([name, other, correlation]) =>
    element("code", `${name} ${other} (${correlation.toFixed(2)})`)));
  const contexts = latent.contexts.map((tokens) => {
    const quote = document.createElement("blockquote");
    quote.append(...tokens.map(([text, fired]) => fired ? marked(text) : element("span", text)));
    return quote;
  });
  const title = element("h3", `Latent ${latent.latent}, active on ${percent(latent.rate)}`);
  const silent = contexts.length ? [] : [element("p", "It was active on none of the tokens.")];
  shown.replaceChildren(title, promoted, like, ...contexts, ...silent);
}
