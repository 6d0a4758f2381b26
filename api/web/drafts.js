// What survives a reload, in the browser's database: "current", the unsent draft (the chosen
// pictures, parameters and masks), and "own", all pictures of the user. Where the browser forbids it,
// they live as long as the page.

const DATABASE = "impasto", STORE = "draft";

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function run(mode, action) {
  try {
    const database = await open();
    try {
      return await new Promise((resolve, reject) => {
        const transaction = database.transaction(STORE, mode);
        const call = action(transaction.objectStore(STORE));
        transaction.oncomplete = () => resolve(call.result);
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
      });
    } finally { database.close(); }
  } catch { return null; }  // forbidden, full or damaged: the page works without it
}

export const loadDraft = (key) => run("readonly", (store) => store.get(key));

// change(draft): returns what takes its place. No other tab comes between.
export const saveDraft = (key, change) => run("readwrite", (store) => {
  const reading = store.get(key);
  reading.onsuccess = () => store.put(change(reading.result), key);
  return reading;
});
