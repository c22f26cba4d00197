# Included at the top of llama-cpp-python's CMake project: builds libllama and ggml only. Its own
# CMakeLists forces the cache entry to ON, and an ordinary variable goes before a cache entry.
set(LLAMA_BUILD_COMMON OFF)
