#include "trireme/comm/rendezvous/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

using ::testing::HasSubstr;

Placement of(const Environment& environment, const PlacementOptions& options = {}) {
  return read_placement(options, environment);
}

std::string complaint(const Environment& environment, const PlacementOptions& options = {}) {
  try {
    read_placement(options, environment);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_NE(error.hint(), "");
    return error.what();
  }
  return "nothing";
}

Environment torchrun(int rank, int size, int local_rank, int local_size) {
  return {{"RANK", std::to_string(rank)},
          {"WORLD_SIZE", std::to_string(size)},
          {"LOCAL_RANK", std::to_string(local_rank)},
          {"LOCAL_WORLD_SIZE", std::to_string(local_size)},
          {"GROUP_RANK", std::to_string(rank / local_size)},
          {"MASTER_ADDR", "10.1.0.7"},
          {"MASTER_PORT", "29511"}};
}

TEST(Placement, AloneWithoutVariables) {
  EXPECT_EQ(of({}), Placement{});
  // Others' variables, an allocation, and a batch script's own step say nothing of ranks.
  EXPECT_EQ(of({{"HOME", "/root"}, {"MASTER_ADDR", "10.0.0.1"}, {"SLURM_NTASKS", "8"}}),
            Placement{});
  EXPECT_EQ(of({{"SLURM_JOB_ID", "7"},
                {"SLURM_NTASKS", "8"},
                {"SLURM_PROCID", "0"},
                {"SLURM_LOCALID", "0"}}),
            Placement{});
  EXPECT_EQ(of({{"RANK", ""}, {"WORLD_SIZE", ""}}), Placement{});
}

TEST(Placement, OneRankOfATorchrunMeetsNobody) {
  const Placement placement = of(torchrun(0, 1, 0, 1));
  EXPECT_EQ(placement.size, 1);
  EXPECT_EQ(placement.address, "");
  EXPECT_EQ(placement.port, 0);
}

TEST(Placement, TorchrunOnTwoMachines) {
  const Placement placement = of(torchrun(5, 8, 1, 4));
  EXPECT_EQ(placement.rank, 5);
  EXPECT_EQ(placement.size, 8);
  EXPECT_EQ(placement.local_rank, 1);
  EXPECT_EQ(placement.local_size, 4);
  EXPECT_EQ(placement.address, "10.1.0.7");
  EXPECT_EQ(placement.port, 29511);
  EXPECT_EQ(placement.launcher, "torchrun");
  EXPECT_FALSE(placement.agent_store);
}

TEST(Placement, TorchrunsAgentMayHoldThePort) {
  Environment environment = torchrun(1, 2, 1, 2);
  environment["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  EXPECT_TRUE(of(environment).agent_store);
  environment["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  EXPECT_FALSE(of(environment).agent_store);
  // Attempts after a failure do not meet the one before.
  environment["TORCHELASTIC_RESTART_COUNT"] = "0";
  const std::string first = of(environment).job;
  environment["TORCHELASTIC_RESTART_COUNT"] = "1";
  EXPECT_NE(of(environment).job, first);
}

TEST(Placement, OpenMpi) {
  Environment environment = {{"OMPI_COMM_WORLD_RANK", "2"},
                             {"OMPI_COMM_WORLD_SIZE", "3"},
                             {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"},
                             {"PMIX_NAMESPACE", "4242"}};
  const Placement placement = of(environment);
  EXPECT_EQ(placement.rank, 2);
  EXPECT_EQ(placement.size, 3);
  EXPECT_EQ(placement.local_rank, 2);
  EXPECT_EQ(placement.launcher, "mpirun");
  EXPECT_EQ(placement.address, "");
  EXPECT_THAT(placement.job, HasSubstr("4242"));
  environment["MASTER_ADDR"] = "10.0.0.2";
  environment["MASTER_PORT"] = "4000";
  EXPECT_EQ(of(environment).address, "10.0.0.2");
  EXPECT_EQ(of(environment).port, 4000);
}

TEST(Placement, OpenMpiOnTwoMachinesNeedsAnAddress) {
  EXPECT_THAT(complaint({{"OMPI_COMM_WORLD_RANK", "3"},
                         {"OMPI_COMM_WORLD_SIZE", "4"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
              HasSubstr("rank 3 of 4 does not know where rank 0 is: MASTER_ADDR and MASTER_PORT"));
}

TEST(Placement, Pmi) {
  const Placement placement = of(
      {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}});
  EXPECT_EQ(placement.rank, 1);
  EXPECT_EQ(placement.local_rank, 1);
  EXPECT_EQ(placement.local_size, 2);
}

TEST(Placement, SrunOnOneMachine) {
  const Placement placement = of({{"SLURM_PROCID", "1"},
                                  {"SLURM_NTASKS", "4"},
                                  {"SLURM_LOCALID", "1"},
                                  {"SLURM_JOB_ID", "77"},
                                  {"SLURM_STEP_ID", "2"},
                                  {"SLURM_STEP_NUM_TASKS", "2"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "2"},
                                  {"SLURM_NODELIST", "n3"}});
  EXPECT_EQ(placement.rank, 1);
  EXPECT_EQ(placement.size, 2);  // of the step, not of the allocation
  EXPECT_EQ(placement.local_size, 2);
  EXPECT_EQ(placement.address, "");
  EXPECT_EQ(placement.job, "srun 77.2");
}

TEST(Placement, SrunOnSeveralMachinesMeetsAtTheFirst) {
  Environment environment = {{"SLURM_PROCID", "6"},  {"SLURM_NTASKS", "7"},
                             {"SLURM_LOCALID", "0"}, {"SLURM_JOB_ID", "20123"},
                             {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"},
                             {"SLURM_NODEID", "3"},  {"SLURM_STEP_NODELIST", "node[08-11]"}};
  const Placement placement = of(environment);
  EXPECT_EQ(placement.local_size, 1);
  EXPECT_EQ(placement.address, "node08");
  EXPECT_GE(placement.port, 1024);
  EXPECT_LT(placement.port, 32768);
  environment["MASTER_PORT"] = "4001";
  EXPECT_EQ(of(environment).port, 4001);
  environment["SLURM_NODEID"] = "1";
  environment["SLURM_PROCID"] = "3";
  environment["SLURM_LOCALID"] = "1";
  EXPECT_EQ(of(environment).local_size, 2);
  EXPECT_EQ(of(environment).local_rank, 1);
}

TEST(Placement, FirstHostOfSlurmsLists) {
  EXPECT_EQ(first_slurm_host("n1"), "n1");
  EXPECT_EQ(first_slurm_host("n1,n2"), "n1");
  EXPECT_EQ(first_slurm_host("node[08-11,14],other"), "node08");
  EXPECT_EQ(first_slurm_host("rack[3,5]-a,b"), "rack3-a");
  EXPECT_EQ(first_slurm_host("r[7]"), "r7");
  EXPECT_THROW(first_slurm_host("node["), Error);
  EXPECT_THROW(first_slurm_host("node[]"), Error);
  EXPECT_THROW(first_slurm_host("node[1-2"), Error);
}

TEST(Placement, HalfSetVariablesAreNamed) {
  EXPECT_THAT(complaint({{"RANK", "1"}}), HasSubstr("RANK = 1 is set, but WORLD_SIZE is not"));
  EXPECT_THAT(complaint({{"WORLD_SIZE", "2"}}),
              HasSubstr("WORLD_SIZE = 2 is set, but RANK is not"));
  EXPECT_THAT(complaint({{"OMPI_COMM_WORLD_RANK", "0"}}), HasSubstr("OMPI_COMM_WORLD_SIZE"));
  EXPECT_THAT(complaint({{"PMI_SIZE", "2"}}), HasSubstr("PMI_RANK"));
  EXPECT_THAT(complaint({{"SLURM_PROCID", "1"}}), HasSubstr("SLURM_NTASKS"));
  EXPECT_THAT(complaint({{"RANK", "1"}, {"WORLD_SIZE", "2"}}),
              HasSubstr("MASTER_ADDR and MASTER_PORT"));
  EXPECT_THAT(complaint({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}}),
              HasSubstr("MASTER_ADDR = h is set, but MASTER_PORT is not"));
  EXPECT_THAT(complaint({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "5"}}),
              HasSubstr("MASTER_PORT = 5 is set, but MASTER_ADDR is not"));
}

TEST(Placement, WrongNumbersAreNamed) {
  const auto with = [](const char* name, const char* value) {
    Environment environment = torchrun(1, 4, 1, 2);
    environment[name] = value;
    return complaint(environment);
  };
  EXPECT_THAT(with("RANK", "one"), HasSubstr("RANK = 'one' is not a number from 0 to"));
  EXPECT_THAT(with("RANK", "-1"), HasSubstr("RANK = '-1'"));
  EXPECT_THAT(with("RANK", "4"), HasSubstr("RANK = 4, but WORLD_SIZE = 4"));
  EXPECT_THAT(with("WORLD_SIZE", "0"), HasSubstr("WORLD_SIZE = '0'"));
  EXPECT_THAT(with("WORLD_SIZE", "99999999999999"), HasSubstr("WORLD_SIZE"));
  EXPECT_THAT(with("LOCAL_RANK", "2"), HasSubstr("LOCAL_RANK = 2, but LOCAL_WORLD_SIZE = 2"));
  EXPECT_THAT(with("LOCAL_WORLD_SIZE", "5"), HasSubstr("LOCAL_WORLD_SIZE = 5, but WORLD_SIZE = 4"));
  EXPECT_THAT(with("MASTER_PORT", "70000"),
              HasSubstr("MASTER_PORT = '70000' is not a number from 1"));
  EXPECT_THAT(with("MASTER_PORT", "29500x"), HasSubstr("MASTER_PORT"));
  Environment beyond = torchrun(0, 4, 1, 2);
  EXPECT_THAT(complaint(beyond), HasSubstr("LOCAL_RANK = 1, but RANK = 0"));
}

TEST(Placement, LaunchersThatContradictEachOtherAreNamed) {
  Environment environment = torchrun(0, 2, 0, 2);
  environment.erase("GROUP_RANK");  // somebody set RANK by hand, for all alike
  environment["OMPI_COMM_WORLD_RANK"] = "1";
  environment["OMPI_COMM_WORLD_SIZE"] = "2";
  EXPECT_THAT(complaint(environment),
              HasSubstr("RANK = 0 of WORLD_SIZE = 2, but OMPI_COMM_WORLD_RANK = 1"));
  environment["RANK"] = "1";
  EXPECT_EQ(of(environment).rank, 1);
}

TEST(Placement, OneLauncherInsideAnotherIsNoContradiction) {
  // mpirun or srun starts torchrun once per machine.
  Environment environment = torchrun(5, 8, 1, 4);
  environment["OMPI_COMM_WORLD_RANK"] = "1";
  environment["OMPI_COMM_WORLD_SIZE"] = "2";
  environment["SLURM_PROCID"] = "1";
  environment["SLURM_NTASKS"] = "2";
  EXPECT_EQ(of(environment).rank, 5);
  // mpirun starts its daemons by srun.
  const Placement placement = of({{"OMPI_COMM_WORLD_RANK", "3"},
                                  {"OMPI_COMM_WORLD_SIZE", "4"},
                                  {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                  {"SLURM_PROCID", "0"},
                                  {"SLURM_NTASKS", "1"},
                                  {"SLURM_STEP_ID", "0"}});
  EXPECT_EQ(placement.rank, 3);
}

TEST(Placement, OptionsGoOverTheEnvironment) {
  PlacementOptions options;
  options.rank = 1;
  options.size = 2;
  options.address = "127.0.0.1";
  options.port = 4000;
  const Placement placement = of(torchrun(5, 8, 1, 4), options);
  EXPECT_EQ(placement.rank, 1);
  EXPECT_EQ(placement.size, 2);
  EXPECT_EQ(placement.address, "127.0.0.1");
  EXPECT_EQ(placement.port, 4000);
  EXPECT_EQ(placement.launcher, "options");

  PlacementOptions only_port;
  only_port.port = 4001;
  EXPECT_EQ(of(torchrun(5, 8, 1, 4), only_port).rank, 5);
  EXPECT_EQ(of(torchrun(5, 8, 1, 4), only_port).port, 4001);

  PlacementOptions half;
  half.rank = 1;
  EXPECT_THAT(complaint({}, half), HasSubstr("only one is given"));
  half.size = 1;
  EXPECT_THAT(complaint({}, half), HasSubstr("rank 1 of 1 cannot be"));
}

}  // namespace
}  // namespace trireme::comm
