// Calls a kernel with the arguments that cuLaunchKernel would get, and describes its parameters to Python.
//
// A parameter is described as "kind size": f float, i signed, u unsigned, b bool, h half, g bfloat16, v void, s struct.
// A pointer is "p" or "c" (to const) followed by the description of what it points to. Parameters end with ";".
#pragma once
#include <string>
#include <type_traits>
#include <utility>

#include "emulator/interface.h"

struct __half;
struct __nv_bfloat16;

namespace culux_emu {

template <class T>
std::string describe() {
    using Plain = std::remove_cv_t<T>;
    if constexpr (std::is_pointer_v<T>) {
        using Pointee = std::remove_pointer_t<T>;
        return (std::is_const_v<Pointee> ? "c" : "p") + describe<std::remove_cv_t<Pointee>>();
    } else if constexpr (std::is_void_v<T>) {
        return "v1";
    } else {
        const std::string size = std::to_string(sizeof(T));
        if constexpr (std::is_same_v<Plain, bool>) return "b" + size;
        if constexpr (std::is_same_v<Plain, __half>) return "h" + size;
        if constexpr (std::is_same_v<Plain, __nv_bfloat16>) return "g" + size;
        if constexpr (std::is_floating_point_v<T>) return "f" + size;
        if constexpr (std::is_integral_v<T>) return (std::is_signed_v<T> ? "i" : "u") + size;
        return "s" + size;
    }
}

template <auto kernel, class = decltype(kernel)>
struct Kernel;

template <auto kernel, class... P>
struct Kernel<kernel, void (*)(P...)> {
    static const char* parameters() {
        static const std::string text = ((describe<P>() + ";") + ... + std::string());
        return text.c_str();
    }
    static void call(void** arguments) { call(arguments, std::index_sequence_for<P...>()); }

  private:
    template <std::size_t... i>
    static void call([[maybe_unused]] void** arguments, std::index_sequence<i...>) {
        kernel(*static_cast<std::remove_reference_t<P>*>(arguments[i])...);
    }
};

template <auto kernel>
constexpr Entry entry() {
    return {&Kernel<kernel>::parameters, &Kernel<kernel>::call};
}

}  // namespace culux_emu
