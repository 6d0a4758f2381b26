// The application: it connects the canvas, the panel and the filmstrip, chooses what an address
// shows, and asks for the API key.

import { apiKey, resolveAddress, ROOT } from "./api.js";
import { BatchView } from "./batch-view.js";
import { CompareView } from "./compare-view.js";
import { byId, listen, makeRoving, onClick, setText, setVisible } from "./dom.js";
import { acceptDropsAndPastes } from "./drop-paste.js";
import { getNames, History, setNames } from "./history.js";
import { install } from "./install.js";
import { JobView } from "./job-view.js";
import { openAddress } from "./layers.js";
import { readRecipe } from "./recipe.js";
import { showTab, SubmitView } from "./submit-view.js";
import { addLanguageSwitch, loadTexts, t, translatePage } from "./text.js";
import { showToast } from "./toast.js";
import { noteChange } from "./touch.js";
import { Viewer } from "./viewer.js";

loadTexts().then(() => {
  translatePage();
  // The document's own address changes, so relative addresses keep their meaning only if they are
  // made absolute now.
  for (const link of document.querySelectorAll("a[href^='.'], link[href^='.']")) link.href = link.href;

  const updateForgetButton = () => setVisible("forget-key", apiKey.get());

  apiKey.onRequired((wasRefused) => new Promise((resolve) => {
    setText("key-message", t(wasRefused ? "keyRefused" : "keyRequired"));
    setVisible("key-form", true);
    editor.showSending();
    byId("key").focus();
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      apiKey.set(byId("key").value, byId("key-remember").checked);
      byId("key-form").reset();
      setVisible("key-form", false);
      editor.showSending();
      updateForgetButton();
      resolve();
      if (wasRefused) films.load();  // another key has other paintings
    };
  }));
  onClick("forget-key", () => { films.deleteNow(); apiKey.forget(); location.assign(ROOT); });
  updateForgetButton();

  let path = null;  // that is shown, relative to ROOT

  const getPath = () => location.pathname.slice(ROOT.pathname.length) + location.search;

  // A request may take long: its end opens nothing if the user has gone elsewhere meanwhile.
  const isShown = ({ id }) => path === `j/${id}`;

  const addJob = ({ id }, isAwaited) => {
    films.refresh();
    if (isAwaited) navigate(`j/${id}`);
  };
  const viewer = new Viewer();
  const editor = new SubmitView(viewer, {
    onSubmitted: (job) => addJob(job, editor.isOpen), onTryAll: tryAll });
  addLanguageSwitch(byId("language"), () => {
    editor.update();  // another tab may have saved its draft meanwhile
    return editor.flush();
  });
  // The browser may not be able to show the user's own file.
  const findPicture = (digest) => {
    const found = editor.pictures.find((picture) => picture.digest === digest);
    return (found?.source ? found.file : found?.screen) ?? null;
  };
  const films = new History({
    onDeleted(ids) { if (ids.some((id) => path.includes(id))) navigate("./"); },
    onOpen: (id) => navigate(`j/${id}`),
    onCompare: (a, b) => navigate(`?compare=${a},${b}`),
    onEnded: (job) => jobView.notify(job),
    onQueueChange: () => editor.updateEstimate(),
    onDeletedElsewhere(id) {
      films.forget(id);
      if (path.includes(id)) navigate(location.href);
    },
  });
  const jobView = new JobView(viewer, {
    findPicture,
    async onReuse(job, kind) {
      if (kind) await editor.useResult(job, kind);
      else await editor.reuse(job.input, getNames(job.id), () => isShown(job));
      if (isShown(job)) navigate("./");
    },
    onCreated(job, previous) {
      const names = getNames(previous.id);
      if (names) setNames(job.id, names);
      addJob(job, isShown(previous));
    },
    // Back to where the job was begun: the editor still has what the user has chosen since then.
    onCanceled(job) {
      const { id, links, retried_from: source } = job, action = links.preview ? t("keep") : "";
      if (isShown(job)) navigate(source ? `j/${source}` : "./");
      films.remove([id], { text: t("canceled"), action, opens: id });
    },
    onDelete: (job) => films.remove([job.id]),
    onMissing: (id) => films.forget(id),
    onChange: (job) => films.update(job),
    onPreview: (job, blob) => films.showPicture(job.id, job.preview, blob),
  });
  const comparison = new CompareView(viewer);
  const batch = new BatchView({
    onStarted: () => films.refresh(),
    onPick({ photo, style, blob }) {
      batch.close();
      editor.draft = blob && { photo, style, blob };
      editor.style.setPictures([style], { append: false });
      byId("submit-job").focus();
    },
  });

  function tryAll() {
    const { photo, style, options } = editor;
    const styles = [...style.own, ...style.samples].slice(0, style.max);
    batch.open(photo.pictures[0], styles, options.spec);
    byId("batch-close").focus();
  }

  acceptDropsAndPastes(async (files, target) => {
    await editor.load();  // else the draft would replace what is chosen meanwhile
    const recipe = files.length === 1 ? await readRecipe(files[0]) : null;
    if (recipe) reuseRecipe(recipe, files[0], target);
    else chooseFiles(files, target);
  });

  let offer = null;  // {picture, close}: the message that offers to make the photo the style
  listen(editor.photo, "change", () => {
    if (!editor.photo.pictures.includes(offer?.picture)) offer?.close();
  });

  // One file goes to the part that it was dropped on, else it is the photo, and the user may make it
  // the style. Several files are a photo and styles.
  function chooseFiles(files, target) {
    const { photo, style } = editor;
    if (path !== "") navigate("./");
    if (target instanceof Node && byId("style").contains(target)) return style.addFiles(files);
    if (files.length > 1) style.addFiles(files.slice(1));
    const previous = photo.pictures;
    photo.addFiles(files.slice(0, 1));
    if (files.length > 1) return;
    const [picture] = photo.pictures;
    const close = showToast(t("addedAsPhoto"), { action: t("useAsStyle"), onAction() {
      photo.removePicture(picture, previous);
      style.setPictures([picture]);
    } });
    offer = { picture, close };
  }

  // A painting of Impasto brings its settings, and its pictures if the service still has them.
  async function reuseRecipe(recipe, file, target) {
    const action = { action: t("useAsPhoto"), onAction: () => chooseFiles([file], target) };
    if (path !== "") navigate("./");
    try {
      await editor.reuse(recipe, null);
      showToast(t("recipeRestored"), action);
    } catch (error) {
      if (error.status !== 404) return showToast(error.message, action);
      editor.parameters.setSpec({ ...recipe.spec, init: undefined, style_weights: undefined });
      showToast(t("recipeWithoutPictures"), action);
    }
  }

  const navigate = (address) => openAddress(resolveAddress(address), () => {
    showPath();
    for (const part of [window, ...document.querySelectorAll(".panel")]) part.scrollTo(0, 0);
    const heading = document.querySelector(".panel:not([hidden]) h2[tabindex]");
    (heading ?? byId("main")).focus({ preventScroll: true });
  });

  function showPath() {
    path = getPath();
    noteChange();
    const id = /^j\/([^/]+)$/.exec(path)?.[1];
    const compared = /^\?compare=(\w+),(\w+)$/.exec(path)?.slice(1);
    const isEditing = !id && !compared;
    setVisible("job-view", id);
    setVisible("compare-view", compared);
    setVisible("submit-view", isEditing);
    document.body.classList.toggle("editing", isEditing);
    document.title = t("title");
    for (const view of [batch, jobView, comparison]) view.close();
    if (!isEditing) editor.close();
    films.setCurrent(id);
    if (films.deleted.has(id)) jobView.showDeleted(id);
    else if (id) jobView.open(id);
    else if (compared) comparison.open(compared);
    else editor.open();
  }

  listen(document, "click", (event) => {
    const link = event.target.closest?.("a[data-local-link]");
    const isModified = event.ctrlKey || event.metaKey || event.shiftKey || event.button;
    if (!link || isModified || event.defaultPrevented) return;
    event.preventDefault();
    navigate(link.href);
  });
  // A popstate with the same path is a jump within the page, such as by the skip link.
  listen(window, "popstate", () => {
    if (getPath() !== path) navigate(location.href);
  });
  // A menu closes when the user goes elsewhere. A tap beside it may move no focus.
  const menu = document.querySelector(".menu");
  listen(document, "pointerdown focusin", ({ target }) => {
    if (!menu.contains(target)) menu.open = false;
  });
  const closeMenu = () => {
    menu.open = false;
    menu.firstElementChild.focus();
  };
  // Before the button acts: a dialog returns the focus.
  listen(menu, "click", ({ target }) => { if (target.closest("button")) closeMenu(); }, true);
  listen(menu, "keydown", ({ key }) => { if (key === "Escape") closeMenu(); });
  makeRoving(byId("style-tools"));
  showTab("photo");
  films.load();
  showPath();
  install();
});
