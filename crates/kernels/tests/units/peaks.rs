use kernels::peaks::peaks;

#[test]
fn every_isa_has_loops_that_count_what_they_do() {
    for table in kernels::table::available() {
        let of = peaks(table.isa);
        let expected = match table.isa {
            // WebAssembly is measured against what the machine does natively.
            _ if cfg!(target_family = "wasm") => "scalar",
            "amx" => "avx512",
            isa => isa,
        };
        assert_eq!(of.isa, expected);
        assert_eq!((of.read)(&[0; 1000]) & !1, 0);
        for count in [of.int8, of.float] {
            assert_eq!(count(0), 0);
            assert_eq!(count(3), 3 * count(1));
            assert!(count(1) > 0);
        }
    }
    assert_eq!(peaks("none").isa, "scalar");
}
