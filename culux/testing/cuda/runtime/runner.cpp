// The main program of the checked builds: one launch, read from a file, in a process of its own.
//
// Input (little endian): int32 kernel, int32 config[9], uint64 seed, int32 count, and for each argument int32 kind
// (0 by value, 1 array, 2 null), int32 offset of the array from a 256-byte boundary, int64 bytes, and the bytes.
// Output: the bytes of the arrays, one after another. Status 3 and a line "culux: ..." where the launch failed.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "emulator/interface.h"

namespace {

template <class T>
T read(std::FILE* file) {
    T value;
    if (std::fread(&value, sizeof(value), 1, file) != 1) std::exit(4);
    return value;
}

struct Argument {
    int kind;
    std::size_t bytes;
    char* data;
};

Argument read_argument(std::FILE* file) {
    Argument argument{};
    argument.kind = read<std::int32_t>(file);
    const auto offset = std::size_t(read<std::int32_t>(file));
    argument.bytes = std::size_t(read<std::int64_t>(file));
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, offset + argument.bytes)) std::exit(4);
    argument.data = static_cast<char*>(memory) + offset;
    if (std::fread(argument.data, 1, argument.bytes, file) != argument.bytes) std::exit(4);
    return argument;
}

}  // namespace

int main(int, char** paths) {
    std::FILE* input = std::fopen(paths[1], "rb");
    if (!input) return 4;
    const int kernel = read<std::int32_t>(input);
    int config[9];
    for (int& value : config) value = read<std::int32_t>(input);
    const auto seed = read<std::uint64_t>(input);
    std::vector<Argument> arguments(std::size_t(read<std::int32_t>(input)));
    std::vector<void*> pointers;
    for (Argument& argument : arguments) argument = read_argument(input);
    for (Argument& argument : arguments) {
        if (argument.kind == 2) argument.data = nullptr;
        pointers.push_back(argument.kind == 0 ? argument.data : reinterpret_cast<char*>(&argument.data));
    }
    std::fclose(input);
    void* stacks = nullptr;
    if (const char* text = culux_emu_launch(kernel, pointers.data(), config, seed, &stacks)) {
        std::fprintf(stderr, "culux: %s\n", text);
        std::fflush(stderr);
        std::_Exit(3);
    }
    std::FILE* output = std::fopen(paths[2], "wb");
    if (!output) return 4;
    for (const Argument& argument : arguments)
        if (argument.kind == 1 && argument.bytes) std::fwrite(argument.data, 1, argument.bytes, output);
    std::fclose(output);
    std::_Exit(0);
}
