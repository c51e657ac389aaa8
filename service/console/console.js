// The console: choose images, POST /generate, follow the job's events, offer the files.

const at = (id) => document.getElementById(id);
const IMAGE = /\.(png|jpe?g|webp)$/i;
const STAGES = {
  decode_inputs: "reading the images",
  encode: "encoding the images",
  sample: "making weights",
  decode_weights: "decoding the weights",
  rank: "ranking the candidates",
  store: "storing the best",
};

const MEASURED = {
  "cross-validation": "Accuracy in cross-validation",
  holdout: "Accuracy on held-out images",
};

const BASELINES = {
  closed_form: "the closed form",
  nearest_class_mean: "the nearest class mean",
};

let source = null; // {samples: [{file, label}]} or {dataset: file}
let targets = [];
let stream = null;

// Choosing ------------------------------------------------------------------------------------------------------------

function choose(next, words) {
  source = next;
  at("chosen").textContent = words;
}

function chooseFolder(entries) {
  const samples = entries
    .filter(({ path }) => IMAGE.test(path) && path.split("/").length >= 2)
    .map(({ path, file }) => ({ file, label: path.split("/").at(-2) }));
  const classes = [...new Set(samples.map(({ label }) => label))].sort();
  if (classes.length < 2) {
    choose(null, "No images in at least two subfolders were found there.");
    return;
  }
  choose({ samples }, `${samples.length} images of ${classes.length} classes: ${classes.join(", ")}.`);
}

const chooseFile = (file) => choose({ dataset: file }, `${file.name}, ${Math.ceil(file.size / 1000)} kB.`);

async function filesBelow(entry, path = "") {
  const here = path + entry.name;
  if (entry.isFile) {
    return [{ path: here, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives out a hundred entries at a time
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return found;
    for (const child of batch) found.push(...(await filesBelow(child, here + "/")));
  }
}

async function dropped(event) {
  event.preventDefault();
  at("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  if (entries.length === 1 && entries[0].isFile) {
    chooseFile(event.dataTransfer.files[0]);
  } else {
    chooseFolder((await Promise.all(entries.map((entry) => filesBelow(entry)))).flat());
  }
}

// Talking to the service ----------------------------------------------------------------------------------------------

async function ask(path, options) {
  const answer = await fetch(path, options);
  const body = answer.status === 204 ? null : await answer.json();
  if (answer.status === 401) at("sign-in").hidden = false;
  if (!answer.ok) throw new Error(`${body.title}. ${body.detail}`);
  return body;
}

function complain(error) {
  at("problem").textContent = error ? error.message : "";
  at("problem").hidden = !error;
}

// The browser keeps the key as a cookie that no script can read: event streams and links carry it too.
async function signIn(event) {
  event.preventDefault();
  complain(null);
  try {
    await ask("/session", { method: "PUT", headers: { Authorization: `Bearer ${at("key").value.trim()}` } });
    at("key").value = "";
    at("sign-in").hidden = true;
    at("sign-out").hidden = false;
    await loadTargets();
  } catch (error) {
    complain(error);
  }
}

async function signOut() {
  await ask("/session", { method: "DELETE" });
  location.reload();
}

async function submit(event) {
  event.preventDefault();
  complain(null);
  if (!source) {
    complain(new Error("Choose a folder or a file first."));
    return;
  }
  const form = new FormData(at("form"));
  if (source.dataset) form.append("dataset", source.dataset);
  for (const { file, label } of source.samples ?? []) {
    form.append("samples", file);
    form.append("labels", label);
  }
  at("submit").disabled = true;
  try {
    const headers = { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` };
    follow(await ask("/generate", { method: "POST", body: form, headers }));
  } catch (error) {
    complain(error);
    at("submit").disabled = false;
  }
}

// Following -----------------------------------------------------------------------------------------------------------

function say(words, progress) {
  at("status").textContent = words;
  if (progress === undefined) at("progress").removeAttribute("value");
  else at("progress").value = progress;
}

function follow(job) {
  at("result").hidden = true;
  at("job").hidden = false;
  at("cancel").hidden = false;
  at("job-id").textContent = job.id;
  at("cancel").onclick = () => ask(job.links.cancel, { method: "POST" }).catch(complain);
  say("Waiting for a worker…");

  stream?.close();
  stream = new EventSource(job.links.events);
  stream.addEventListener("progress", ({ data }) => {
    const { stage, step, steps } = JSON.parse(data);
    say(`Running: ${STAGES[stage] ?? stage}${steps > 1 ? `, ${step} of ${steps}` : ""}`, steps ? step / steps : undefined);
  });
  stream.addEventListener("status", async ({ data }) => {
    const { status, cancel_requested: canceling } = JSON.parse(data);
    if (status === "queued") say("Waiting for a worker…");
    else if (status === "running") say(canceling ? "Stopping…" : "Running…");
    else await ended(job);
  });
}

async function ended(job) {
  stream.close();
  at("submit").disabled = false;
  at("cancel").hidden = true;
  try {
    const { status, result, error } = await ask(job.links.self);
    say(`The job ${status === "canceled" ? "was canceled" : status}.`, status === "succeeded" ? 1 : 0);
    if (error) complain(new Error(`${error.title}. ${error.detail}`));
    if (result) show(result);
  } catch (error) {
    complain(error);
  }
}

function show(result) {
  at("summary").textContent =
    `Classes: ${result.classes.join(", ")}. Method ${result.method}, seed ${result.seed}, bundle ${result.bundle}.`;
  at("warning").textContent = result.novelty.warning ?? "";
  at("warning").hidden = !result.novelty.warning;
  const others = Object.entries(result.baselines).map(([name, accuracy]) => `${BASELINES[name] ?? name} ${percent(accuracy)}`);
  at("baselines").textContent = others.length ? `Measured in the same way: ${others.join(", ")}.` : "";
  at("measured").textContent = MEASURED[result.ranked_on] ?? "Accuracy";
  at("models").replaceChildren(...result.models.map(row));
  at("result").hidden = false;
}

function row({ rank, holdout_accuracy: accuracy, links }) {
  const line = document.createElement("tr");
  const files = line.insertCell();
  files.before(cell(String(rank + 1)), cell(accuracy === null ? "not measured" : percent(accuracy)));
  files.append(link(links.weights, "weights"), link(links.onnx, "ONNX"), link(links.card, "card"));
  return line;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function cell(text) {
  const made = document.createElement("td");
  made.textContent = text;
  return made;
}

function link(href, text) {
  return Object.assign(document.createElement("a"), { href, textContent: text });
}

// The catalogue -------------------------------------------------------------------------------------------------------

function describe() {
  const target = targets.find(({ id }) => id === at("target").value);
  at("about").textContent = target ? `${target.architecture}, ${target.parameters.toLocaleString()} weights.` : "";
}

async function loadTargets() {
  const catalogue = await ask("/targets");
  targets = catalogue.targets;
  const options = targets.map(({ id }) => new Option(id, id, id === catalogue.default, id === catalogue.default));
  at("target").replaceChildren(...options);
  describe();
}

at("form").addEventListener("submit", submit);
at("sign-in").addEventListener("submit", signIn);
at("sign-out").addEventListener("click", () => signOut().catch(complain));
at("target").addEventListener("change", describe);
at("folder").addEventListener("change", ({ target: { files } }) =>
  chooseFolder([...files].map((file) => ({ path: file.webkitRelativePath, file }))));
at("file").addEventListener("change", ({ target: { files } }) => files.length && chooseFile(files[0]));
at("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => dropped(event).catch(complain));
loadTargets().catch(complain);
