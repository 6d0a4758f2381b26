// Accepts image files that are dropped or pasted anywhere on the page, in any state.

import { byId } from "./dom.js";
import { t } from "./text.js";
import { showToast } from "./toast.js";

// A file without a type may be an image: some systems do not know HEIC.
const getImages = ({ files }) =>
  [...files].filter((file) => file.type.startsWith("image/") || !file.type);

// onFiles(files, target): target is the element that they were dropped on, or that has the focus.
export function acceptDropsAndPastes(onFiles) {
  const mark = (event) => {
    const { classList } = document.body, isOverStyle = byId("style").contains(event?.target);
    classList.toggle("dragging", Boolean(event));
    classList.toggle("dragging-style", isOverStyle);
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    if (event.dataTransfer.types.includes("Files")) mark(event);
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(null); });
  addEventListener("drop", (event) => {
    event.preventDefault();  // else the browser would replace the page by the image
    mark(null);
    const files = getImages(event.dataTransfer);
    if (files.length) onFiles(files, event.target);
    else showToast(t("notAFile"));
  });
  addEventListener("paste", (event) => {
    const files = getImages(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    onFiles(files, document.activeElement);
  });
}
