"""The runtime `llama_cpp`: llama.cpp in processes of its own, for GGUF files that the user has or downloads."""
