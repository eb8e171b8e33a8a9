/* Floats: each operation is rounded to float32, to nearest with ties to even, in the order written; none is fused. */

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "this code needs a compiler that computes floats in their own precision"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
