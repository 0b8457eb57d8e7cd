// Compare a GGUF file, run by llama.cpp, with the greedy continuations that export.py --reference wrote.
//
//     npm install --no-save node-llama-cpp && node check.mjs stories-moe-q8_0.gguf ref.json
//
// The two sum in different orders, so one token may differ where the best two logits almost tie; the
// continuations part from there on. A difference at a gap above MAX_GAP is an error. In a quantised
// file llama.cpp also rounds activations to 8 bits, hence the room.
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const MAX_GAP = 0.1;
const [file, reference] = process.argv.slice(2);
const rows = JSON.parse(fs.readFileSync(reference, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: file, gpuLayers: 0});
const context = await model.createContext({contextSize: 512, threads: 1});

let failures = 0;
for (const {prompt, prompt_ids, ids, gaps} of rows) {
    const input = [model.tokens.bos, ...model.tokenize(prompt)];
    const promptAgrees = JSON.stringify(input) === JSON.stringify(prompt_ids);
    const sequence = context.getSequence();
    let same = 0;
    for await (const token of sequence.evaluate(input, {temperature: 0})) {
        if (token !== ids[same] || ++same === ids.length)
            break;
    }
    sequence.dispose();
    const good = promptAgrees && (same === ids.length || gaps[same] <= MAX_GAP);
    failures += good ? 0 : 1;
    console.log(`${good ? "ok  " : "FAIL"} ${JSON.stringify(prompt)}: prompt ids ${promptAgrees ? "agree" : "differ"}, `
        + `${same} of ${ids.length} tokens agree${same < ids.length ? `, gap of the two best there ${gaps[same]}` : ""}`);
}
process.exit(failures ? 1 : 0);
