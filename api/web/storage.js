// Text that the browser stores for this page. Where it may not store, or has no space, the text
// stays in memory until the page is closed.

const createStorage = (getStorage) => {
  const fallback = new Map();
  const attempt = (action) => { try { return action(getStorage()); } catch { return null; } };
  return {
    get: (name) => fallback.get(name) ?? attempt((storage) => storage.getItem(name)),
    set(name, text) {
      fallback.set(name, text);
      attempt((storage) => { storage.setItem(name, text); fallback.delete(name); });
    },
    remove(name) {
      fallback.delete(name);
      attempt((storage) => storage.removeItem(name));
    },
  };
};

// Functions, because access to the property itself may throw.
export const deviceStorage = createStorage(() => localStorage);
export const tabStorage = createStorage(() => sessionStorage);
