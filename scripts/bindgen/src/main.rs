//! Writes the JavaScript glue of one WebAssembly module: `bindgen INPUT.wasm FOLDER NAME`.

use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, folder, name] = arguments.as_slice() else {
        return Err("usage: bindgen INPUT.wasm FOLDER NAME".into());
    };
    let mut bindgen = Bindgen::new();
    // Functions' names, for profiles, would be 14 kB of what browsers download.
    bindgen.input_path(input).out_name(name).typescript(false).remove_name_section(true);
    bindgen.no_modules(true)?;
    bindgen.generate(folder)?;
    Ok(())
}
