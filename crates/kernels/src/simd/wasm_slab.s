# The products of unpacked rows with two columns: what wasm_slab.rs calls. Written by hand, as compilers order such loops otherwise: they
# compute addresses apart from loads, move a sum's terms together and keep sums in memory.
#
# All functions have these locals:
#   0       how many blocks are left
#   1       the rows' values: 64 bytes of a group of four, 512 of a block
#   2       the rows' scales, 64 bytes of a block
#   3, 4    the columns' blocks
#   5       sums in memory, [column][four rows]
#   6, 7    what a function is told beside
#   8, 9    a group of each column, or its scale
#   10      four rows' values, scales or numbers
#   11      a constant
#   12-15   four rows' products with the first column each,
#   16-19   and with the second
#   20-23   sums of the first column,
#   24-27   and of the second
#   28-31   products with the first column that are complete, while 12-15 hold others,
#   32-35   and with the second
#   36, 37  constants

# A group of four values of both columns.
.macro values at
    local.get 3
    v128.load32_splat \at
    local.set 8
    local.get 4
    v128.load32_splat \at
    local.set 9
.endm

# Whole products, four of them added to a sum of 32 bits.
.macro whole values, sum
    local.get \values
    local.get 10
    local.get \sum
    i32x4.relaxed_dot_i8x16_i7x16_add_s
    local.set \sum
.endm

# Two products each in 16 bits, with which sums begin.
.macro pairs values, sum
    local.get \values
    local.get 10
    i16x8.relaxed_dot_i8x16_i7x16_s
    local.set \sum
.endm

# The same, added to sums.
.macro more_pairs values, sum
    local.get \sum
    local.get \values
    local.get 10
    i16x8.relaxed_dot_i8x16_i7x16_s
    i16x8.add
    local.set \sum
.endm

.macro quad product, at, first, second
    local.get 1
    v128.load \at
    local.set 10
    \product 8, \first
    \product 9, \second
.endm

.macro group product, at, first, second, third, fourth
    values \at
    quad \product, \first, 12, 16
    quad \product, \second, 13, 17
    quad \product, \third, 14, 18
    quad \product, \fourth, 15, 19
.endm

.macro first_quarter first_product, product
    group \first_product, 24, 0, 16, 32, 48
    group \product, 28, 64, 80, 96, 112
.endm

.macro second_quarter first_product, product
    group \first_product, 32, 128, 144, 160, 176
    group \product, 36, 192, 208, 224, 240
.endm

.macro third_quarter first_product, product
    group \first_product, 40, 256, 272, 288, 304
    group \product, 44, 320, 336, 352, 368
.endm

.macro fourth_quarter first_product, product
    group \first_product, 48, 384, 400, 416, 432
    group \product, 52, 448, 464, 480, 496
.endm

.macro all_quarters product
    first_quarter \product, \product
    second_quarter \product, \product
    third_quarter \product, \product
    fourth_quarter \product, \product
.endm

# Sums begin with two values on the stack.
.macro begin
    local.tee 16
    local.tee 17
    local.tee 18
    local.set 19
    local.tee 12
    local.tee 13
    local.tee 14
    local.set 15
.endm

# Sums begin with what the columns have for it, or zero, as a mask tells.
.macro begin_masked at
    local.get 3
    v128.load32_splat \at
    local.get 11
    v128.and
    local.get 4
    v128.load32_splat \at
    local.get 11
    v128.and
    begin
.endm

# Minus a column's sums of its halves, times two constants.
.macro minus column, constant
    local.get \column
    v128.load32_splat 4
    local.get \constant
    i32x4.dot_i16x8_s
.endm

# Sums of 16 bits, added to some of 32.
.macro widen_more sum, to
    local.get \to
    local.get \sum
    local.get 11
    i32x4.dot_i16x8_s
    i32x4.add
    local.set \to
.endm

# The sums of both columns, for which there are pairs of numbers.
.macro each_sum operation
    \operation 12, 28
    \operation 13, 29
    \operation 14, 30
    \operation 15, 31
    \operation 16, 32
    \operation 17, 33
    \operation 18, 34
    \operation 19, 35
.endm

# Sums of 16 bits become some of 32.
.macro widen_here sum, other
    local.get \sum
    local.get 11
    i32x4.dot_i16x8_s
    local.set \sum
.endm

# Those that are complete are added to what the sums are now.
.macro join sum, other
    local.get \other
    local.get \sum
    local.get 11
    i32x4.dot_i16x8_s
    i32x4.add
    local.set \sum
.endm

# Sums that are complete begin with what takes the rows' offset out.
.macro begin_wide constant
    minus 3, \constant
    local.tee 28
    local.tee 29
    local.tee 30
    local.set 31
    minus 4, \constant
    local.tee 32
    local.tee 33
    local.tee 34
    local.set 35
.endm

# A block in pairs, of which half fits into 16 bits.
.macro wide_block
    begin_wide 36
    first_quarter pairs, more_pairs
    second_quarter more_pairs, more_pairs
    each_sum widen_more
    third_quarter pairs, more_pairs
    fourth_quarter more_pairs, more_pairs
    each_sum join
.endm

.macro scaled_column scale, dots, sum
    local.get \sum
    local.get 10
    local.get \scale
    f32x4.mul
    local.get \dots
    f32x4.convert_i32x4_s
    f32x4.mul
    f32x4.add
    local.set \sum
.endm

# Adds products times the scales of four rows and of both columns.
.macro scaled at, first, first_sum, second, second_sum
    local.get 2
    v128.load \at
    local.set 10
    scaled_column 8, \first, \first_sum
    scaled_column 9, \second, \second_sum
.endm

.macro add_scaled
    values 0
    scaled 0, 12, 20, 16, 24
    scaled 16, 13, 21, 17, 25
    scaled 32, 14, 22, 18, 26
    scaled 48, 15, 23, 19, 27
.endm

# Minimums, 512 bytes after the scales, times minus each column's sum, of which 128 times as much is there.
.macro add_minimums
    local.get 7
    if
    local.get 3
    v128.load32_splat 12
    i32.const 7
    i32x4.shr_s
    local.set 12
    local.get 4
    v128.load32_splat 12
    i32.const 7
    i32x4.shr_s
    local.set 16
    scaled 512, 12, 20, 16, 24
    scaled 528, 12, 21, 16, 25
    scaled 544, 12, 22, 16, 26
    scaled 560, 12, 23, 16, 27
    end_if
.endm

.macro times_column dots, sum
    local.get \sum
    local.get \dots
    local.get 10
    i32x4.mul
    i32x4.add
    local.set \sum
.endm

# Numbers of four rows: whole ones, or the low or the high halves of theirs.
.macro number at
    local.get 2
    v128.load \at
.endm

.macro low_number at
    number \at
    i32.const 16
    i32x4.shl
    i32.const 16
    i32x4.shr_s
.endm

.macro high_number at
    number \at
    i32.const 16
    i32x4.shr_s
.endm

.macro times number, at, first, first_sum, second, second_sum
    \number \at
    local.set 10
    times_column \first, \first_sum
    times_column \second, \second_sum
.endm

# Adds products times the numbers of the rows.
.macro add_times number
    times \number, 0, 12, 20, 16, 24
    times \number, 16, 13, 21, 17, 25
    times \number, 32, 14, 22, 18, 26
    times \number, 48, 15, 23, 19, 27
.endm

.macro sum local, at
    local.get 5
    v128.load \at
    local.set \local
.endm

.macro put local, at
    local.get 5
    local.get \local
    v128.store \at
.endm

.macro each_in_memory operation
    \operation 20, 0
    \operation 21, 16
    \operation 22, 32
    \operation 23, 48
    \operation 24, 64
    \operation 25, 80
    \operation 26, 96
    \operation 27, 112
.endm

.macro advance pointer, local, bytes
    local.get \local
    \pointer\().const \bytes
    \pointer\().add
    local.set \local
.endm

.macro constant local, to
    local.get \local
    i32x4.splat
    local.set \to
.endm

.macro function name, pointer
    .globl \name
    .hidden \name
    .type \name,@function
\name:
    .functype \name (i32, \pointer, \pointer, \pointer, \pointer, \pointer, i32, i32) -> ()
    .local v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128, v128
    each_in_memory sum
.endm

.macro next pointer
    advance \pointer, 1, 512
    advance \pointer, 2, 64
    advance \pointer, 3, 56
    advance \pointer, 4, 56
    local.get 0
    i32.const -1
    i32.add
    local.tee 0
    br_if 0
    end_loop
    each_in_memory put
    end_function
.endm

# A one in each 16 bits, which compilers do not know: they would make it anew for each use.
.macro ones
    i32.const 0
    local.get 0
    i32.lt_s
    i16x8.splat
    local.set 11
.endm

# Sums of 16 bits begin with what takes the rows' offset out.
.macro begin_pairs constant
    local.get 3
    v128.load32_splat 4
    local.get \constant
    i16x8.mul
    local.get 4
    v128.load32_splat 4
    local.get \constant
    i16x8.mul
    begin
.endm

.macro functions pointer

# Products in 32 bits. 6: what the columns' starts are masked with; 7: whether there are minimums.
function frugal_whole_blocks, \pointer
    constant 6, 11
    loop
    begin_masked 12
    all_quarters whole
    add_scaled
    add_minimums
    next \pointer

function frugal_whole_numbers, \pointer
    constant 6, 11
    loop
    begin_masked 12
    all_quarters whole
    add_times number
    next \pointer

function frugal_whole_halves, \pointer
    constant 6, 11
    loop
    begin_masked 16
    first_quarter whole, whole
    second_quarter whole, whole
    add_times low_number
    begin_masked 20
    third_quarter whole, whole
    fourth_quarter whole, whole
    add_times high_number
    next \pointer

# Products in pairs of 16 bits, those of a whole block: bytes up to 15. 6: the rows' offset, twice; 7: whether there are minimums.
function frugal_pair_blocks, \pointer
    ones
    constant 6, 36
    loop
    begin_pairs 36
    all_quarters more_pairs
    each_sum widen_here
    add_scaled
    add_minimums
    next \pointer

function frugal_pair_numbers, \pointer
    ones
    constant 6, 36
    loop
    begin_pairs 36
    all_quarters more_pairs
    each_sum widen_here
    add_times number
    next \pointer

# Those of half a block: bytes up to 31.
function frugal_pair_wide_blocks, \pointer
    ones
    constant 6, 36
    loop
    wide_block
    add_scaled
    add_minimums
    next \pointer

function frugal_pair_wide_numbers, \pointer
    ones
    constant 6, 36
    loop
    wide_block
    add_times number
    next \pointer

# Those of a quarter: bytes up to 63. 6 and 7: the rows' offset in the low and in the high 16 bits.
function frugal_pair_halves, \pointer
    ones
    constant 6, 36
    constant 7, 37
    loop
    begin_wide 36
    first_quarter pairs, more_pairs
    each_sum widen_more
    second_quarter pairs, more_pairs
    each_sum join
    add_times low_number
    begin_wide 37
    third_quarter pairs, more_pairs
    each_sum widen_more
    fourth_quarter pairs, more_pairs
    each_sum join
    add_times high_number
    next \pointer

.endm
