//! CPU kernels: slices in, slices out; knows neither models nor tensors.
