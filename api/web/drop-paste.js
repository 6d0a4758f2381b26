// Accepts image files that are dropped or pasted anywhere on the page.

// A file without a type may be an image: some systems do not know HEIC.
const getImages = ({ files }) =>
  [...files].filter((file) => file.type.startsWith("image/") || !file.type);

// Several files are a photo and paintings. One file goes to the picker that it was dropped on, else
// to the first empty picker.
function distributeFiles(files, photo, painting, target) {
  const picker = [photo, painting]
    .find(({ root }) => target instanceof Node && root.contains(target));
  if (picker) picker.addFiles(files);
  else if (files.length > 1) {
    photo.addFiles(files.slice(0, 1));
    painting.addFiles(files.slice(1));
  } else if (photo.hasPictures && !painting.hasPictures) painting.addFiles(files);
  else photo.addFiles(files);
}

export function acceptDropsAndPastes(photo, painting, isOpen) {
  const stopDragging = () => document.body.classList.remove("dragging");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", event.dataTransfer.types.includes("Files"));
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) stopDragging(); });
  addEventListener("drop", (event) => {
    event.preventDefault();  // else the browser would replace the page by the image
    stopDragging();
    const files = getImages(event.dataTransfer);
    if (!isOpen()) return;
    if (files.length) distributeFiles(files, photo, painting, event.target);
    else photo.showError("This is not a file. Save the picture first, then drop it here.");
  });
  addEventListener("paste", (event) => {
    const files = getImages(event.clipboardData);
    if (!files.length || !isOpen()) return;
    event.preventDefault();
    distributeFiles(files, photo, painting, document.activeElement);
  });
}
