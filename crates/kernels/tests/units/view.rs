use kernels::view::Aligned;

#[test]
fn parts_of_streamed_memory_are_aligned_and_apart() {
    for lens in [&[100, 7, 64, 0, 65][..], &[64, 3], &[3 << 20, 100, 2 << 20], &[0, 0], &[]] {
        let mut parts = Aligned::<u8>::streamed_parts(lens).unwrap();
        assert_eq!(parts.iter().map(Aligned::bytes).collect::<Vec<_>>(), lens);
        for (i, part) in parts.iter_mut().enumerate() {
            assert_eq!(part.as_slice().as_ptr().align_offset(64), 0);
            part.as_mut_slice().fill(i as u8 + 1);
        }
        let first = if parts.is_empty() { None } else { Some(parts.remove(0)) };
        // What is left keeps the memory of all.
        drop(first);
        for (i, part) in parts.iter().enumerate() {
            assert!(part.as_slice().iter().all(|&byte| byte == i as u8 + 2));
        }
    }
    assert!(Aligned::<f32>::streamed_parts(&[usize::MAX / 8; 16]).is_none());
}
