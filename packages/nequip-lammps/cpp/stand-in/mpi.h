// All that LAMMPS' headers say of MPI, for LAMMPS builds that come without its header. The plugin makes no MPI call.
// SPDX-License-Identifier: MIT
#pragma once
#ifdef NEQUIP_MPI_COMM_IS_POINTER  // Open MPI
typedef struct nequip_mpi_comm *MPI_Comm;
#else  // MPICH and its relatives
typedef int MPI_Comm;
#endif
