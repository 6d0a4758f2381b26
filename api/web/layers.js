// What lies over the page, such as the mask editor or a dialog: the browser's Back button closes
// the one on top, in place of leaving the page. Each layer has an entry in the browser's history.

const layers = [];  // the functions that close them
let isLeaving = false;  // an entry, until the browser has done so

// A reload keeps the entry, but not the layer.
if (history.state?.layers) history.replaceState(null, "");

addEventListener("popstate", ({ state }) => {
  const depth = state?.layers ?? 0;
  isLeaving = false;
  while (layers.length > depth) layers.pop()();
  if (depth > layers.length) leave();  // Forward, to a layer that is closed
});

function leave() {
  isLeaving = true;
  history.back();
}

// Calls the action when the address and the history are those of what is shown.
function whenSettled(action) {
  if (isLeaving) addEventListener("popstate", () => whenSettled(action), { once: true });
  else action();
}

// Says that a layer is open now. close(): hides it, and calls `closeLayer`; more than once is well.
export const openLayer = (close) => whenSettled(() => {
  layers.push(close);
  history.pushState({ layers: layers.length }, "");
});

// Says that the page itself has closed the layer.
export function closeLayer(close) {
  const index = layers.indexOf(close);
  if (index < 0) return;
  layers.splice(index, 1);
  leave();
}

// Opens another address of the page, whose entry replaces that of an open layer.
export const openAddress = (address, show) => whenSettled(() => {
  const open = layers.splice(0);
  for (const close of open.reverse()) close();
  if (open.length) history.replaceState(null, "", address);
  else if (address !== location.href) history.pushState(null, "", address);
  show();
});
