// Pictures dropped or pasted anywhere on the page, and which well they belong to.

const picturesIn = ({ files }) => [...files].filter((file) => file.type.startsWith("image/") || !file.type);

// Two at once are photo and painting. One goes into the well that it was dropped on, else into the first empty one.
function pour(files, photo, painting, target) {
  const aimed = [photo, painting].find((well) => target instanceof Node && well.root.contains(target));
  if (!aimed && files.length > 1) {
    photo.take(files.slice(0, 1));
    painting.take(files.slice(1));
  } else (aimed ?? (photo.ready && !painting.ready ? painting : photo)).take(files);
}

export function receive(photo, painting, isOpen) {
  const leave = () => document.body.classList.remove("dragging");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", event.dataTransfer.types.includes("Files"));
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) leave(); });
  addEventListener("drop", (event) => {
    event.preventDefault();  // else the browser would leave the page for the picture
    leave();
    const files = picturesIn(event.dataTransfer);
    if (!isOpen()) return;
    if (files.length) pour(files, photo, painting, event.target);
    else photo.refuse("That is no file. Save the picture first, then drop it here.");
  });
  addEventListener("paste", (event) => {
    const files = picturesIn(event.clipboardData);
    if (files.length && isOpen()) { event.preventDefault(); pour(files, photo, painting, document.activeElement); }
  });
}
