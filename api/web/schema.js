// The parameters, options, presets and limits of the service. None is defined here: the service puts
// them into the document.

// {parameters: {size: {…}, …}, options: {priority: {…}, …}, presets: […], limits: {…}}.
export const form = JSON.parse(document.getElementById("form").textContent);

// The samples of the page, which the service puts there as well: [{name, kind, title, …}, …].
export const gallery = JSON.parse(document.getElementById("gallery").textContent);

// The default of a parameter; it may depend on the objective.
export const getDefault = (schema, objective) =>
  (objective === "gatys" ? schema.default_gatys : undefined) ?? schema.default ?? null;

// A job's input as the body of a request: without masks and an initial image if it has none.
export const toRequest = ({ masks, style_masks, init_image, ...input }) => ({
  ...input,
  ...(masks.length && { masks }),
  ...(style_masks.length && { style_masks }),
  ...(init_image && { init_image }),
});

// Text that is equal for equal values, whatever the order of an object's properties.
export const canonicalize = (value) => {
  if (value?.constructor !== Object) return JSON.stringify(value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${name}:${canonicalize(value[name])}`)}}`;
};
