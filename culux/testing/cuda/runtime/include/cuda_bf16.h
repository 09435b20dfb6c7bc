// Kernel files include this by name; the emulator has its contents in cuda_emulator.h.
#pragma once
