// What the browser remembers for this page. Where it may not, or has no room, it remembers until the page is closed.

const memory = (storage) => {
  const brief = new Map();
  const tried = (act) => { try { return act(storage()); } catch { return null; } };
  return {
    get: (slot) => brief.get(slot) ?? tried((kept) => kept.getItem(slot)),
    set(slot, text) {
      brief.set(slot, text);
      tried((kept) => { kept.setItem(slot, text); brief.delete(slot); });
    },
    forget(slot) {
      brief.delete(slot);
      tried((kept) => kept.removeItem(slot));
    },
  };
};

export const device = memory(() => localStorage);
export const tab = memory(() => sessionStorage);
