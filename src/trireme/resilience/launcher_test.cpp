#include "trireme/resilience/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "trireme/base/error.h"

namespace trireme::resilience {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

std::string content(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char buffer[4096];
  for (size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, file)) > 0;)
    text.append(buffer, got);
  return text;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// Ranks that run a shell script.
struct Script {
  LaunchOptions options;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> out{std::tmpfile(), &std::fclose};
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> err{std::tmpfile(), &std::fclose};

  Script(int ranks, const std::string& script) {
    options.program = "/bin/sh";
    options.arguments = {"-c", script};
    options.num_ranks = ranks;
    options.port = 29511;
    options.token = "a token of the tests";
    options.out = ::fileno(out.get());
    options.err = ::fileno(err.get());
  }
  Outcome run() {
    Outcome outcome;
    outcome.status = launch(options);
    outcome.out = content(out.get());
    outcome.err = content(err.get());
    return outcome;
  }
};

TEST(RankVariables, AreTorchruns) {
  LaunchOptions options;
  options.num_ranks = 4;
  options.node = 1;
  options.num_nodes = 3;
  options.address = "10.0.0.1";
  options.port = 4000;
  options.token = "secret";
  options.listener = 9;
  options.hosts = {"a", "b", "c"};
  const auto list = rank_variables(options, 2, 16, false);
  const std::map<std::string, std::string> variables(list.begin(), list.end());
  EXPECT_EQ(variables.size(), list.size());
  EXPECT_EQ(variables.at("RANK"), "6");
  EXPECT_EQ(variables.at("WORLD_SIZE"), "12");
  EXPECT_EQ(variables.at("LOCAL_RANK"), "2");
  EXPECT_EQ(variables.at("LOCAL_WORLD_SIZE"), "4");
  EXPECT_EQ(variables.at("MASTER_ADDR"), "10.0.0.1");
  EXPECT_EQ(variables.at("MASTER_PORT"), "4000");
  EXPECT_EQ(variables.at("TRIREME_TOKEN"), "secret");
  EXPECT_EQ(variables.at("TRIREME_HOSTS"), "a,b,c");
  EXPECT_EQ(variables.at("OMP_NUM_THREADS"), "4");
  EXPECT_FALSE(variables.contains("TRIREME_LISTEN_FD"));  // rank 0 alone has it
}

TEST(RankVariables, ShareTheCores) {
  const auto threads = [](int ranks, int cores, int asked, bool has_omp) -> std::string {
    LaunchOptions options;
    options.num_ranks = ranks;
    options.num_threads = asked;
    for (const auto& [name, value] : rank_variables(options, 0, cores, has_omp)) {
      if (name == "OMP_NUM_THREADS") return value;
    }
    return "as it was";
  };
  EXPECT_EQ(threads(3, 8, 0, false), "2");
  EXPECT_EQ(threads(8, 2, 0, false), "1");
  EXPECT_EQ(threads(2, 8, 0, true), "as it was");
  EXPECT_EQ(threads(2, 8, 3, true), "3");
}

TEST(Judge, TheFirstFailureCounts) {
  int rank = 0;
  EXPECT_EQ(judge({{0, 0, 1}, {1, 0, 1}}, false, &rank), 0);
  EXPECT_EQ(rank, -1);
  EXPECT_EQ(judge({{0, 0, 1}, {2, 3, 2}, {1, 2, 3}}, false, &rank), 3);
  EXPECT_EQ(rank, 2);
  // Noticed together: who lost a peer is not the cause.
  EXPECT_EQ(judge({{0, 4, 1}, {1, 4, 1}, {2, 137, 1}}, false, &rank), 137);
  EXPECT_EQ(rank, 2);
  EXPECT_EQ(judge({{0, 4, 1}, {1, 137, 2}}, false), 4);
  EXPECT_EQ(judge({{1, 4, 1}, {0, 2, 2}}, false, &rank), 2);  // told the other before it ended
  EXPECT_EQ(rank, 0);
  EXPECT_EQ(judge({{0, 3, 1}, {1, 2, 1}}, false), 3);
  // Those that the launcher ended are not the cause either.
  EXPECT_EQ(judge({{1, 2, 1}, {0, 143, 2, true}}, false), 2);
}

TEST(Judge, AnInterruptedRunEndsWith130) {
  EXPECT_EQ(judge({{0, 130, 1}, {1, 130, 2}}, true), 130);
  EXPECT_EQ(judge({{0, 130, 1}, {1, 143, 1}}, true), 130);  // before it could handle the signal
  EXPECT_EQ(judge({{0, 4, 1}, {1, 130, 1}}, true), 130);    // lost its peer by it
  EXPECT_EQ(judge({{0, 0, 1}, {1, 0, 1}}, true), 0);        // done all the same
  int rank = 0;
  EXPECT_EQ(judge({{0, 130, 1}, {1, 3, 1}}, true, &rank),
            3);  // the checkpoint could not be written
  EXPECT_EQ(rank, 1);
}

TEST(Launch, OutputHasTheRankInFrontAndLinesStayWhole) {
  const Outcome outcome = Script(3,
                                 "i=0; while [ $i -lt 200 ]; do echo \"$RANK line $i $RANK\"; "
                                 "i=$((i + 1)); done; printf 'no newline' >&2")
                              .run();
  EXPECT_EQ(outcome.status, 0);
  std::map<std::string, int> next;
  for (const std::string& line : lines_of(outcome.out)) {
    ASSERT_GE(line.size(), 12u);
    const std::string rank = line.substr(1, 1);
    EXPECT_EQ(line,
              "[" + rank + "] " + rank + " line " + std::to_string(next[rank]++) + " " + rank);
  }
  EXPECT_EQ(next, (std::map<std::string, int>{{"0", 200}, {"1", 200}, {"2", 200}}));
  EXPECT_THAT(lines_of(outcome.err),
              UnorderedElementsAre("[0] no newline", "[1] no newline", "[2] no newline"));
  EXPECT_EQ(outcome.err.back(), '\n');
}

TEST(Launch, ADocumentComesThroughAsItIs) {
  Script script(2, "printf '{\"rank\": %s}' $RANK; echo log >&2");
  script.options.document = true;
  const Outcome outcome = script.run();
  EXPECT_EQ(outcome.out, "{\"rank\": 0}");
  EXPECT_THAT(lines_of(outcome.err),
              UnorderedElementsAre("[0] log", "[1] log", "[1] {\"rank\": 1}"));
}

TEST(Launch, StandardInputIsEmpty) {
  const Outcome outcome = Script(1, "read -r line && echo read || echo end").run();
  EXPECT_EQ(outcome.out, "[0] end\n");
}

TEST(Launch, RanksHaveTheirVariables) {
  ::setenv("RANK", "77", 1);
  ::setenv("TRIREME_LISTEN_FD", "5", 1);
  const Outcome outcome =
      Script(2, "echo $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $TRIREME_LISTEN_FD.")
          .run();
  ::unsetenv("RANK");
  ::unsetenv("TRIREME_LISTEN_FD");
  EXPECT_THAT(lines_of(outcome.out),
              UnorderedElementsAre("[0] 0/2 0 127.0.0.1:29511 .", "[1] 1/2 1 127.0.0.1:29511 ."));
}

TEST(Launch, TheStatusIsTheFirstFailingRanks) {
  const Outcome outcome = Script(3, "[ $RANK != 1 ] || exit 3").run();
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("launch: rank 1 failed with exit status 3"));
}

TEST(Launch, ASignalsStatusIs128More) {
  const Outcome outcome = Script(1, "kill -KILL $$").run();
  EXPECT_EQ(outcome.status, 128 + SIGKILL);
  EXPECT_THAT(outcome.err, HasSubstr("launch: rank 0 failed with signal 9"));
}

TEST(Launch, AProgramThatIsNotThereIsNamed) {
  Script script(1, "");
  script.options.program = "/nowhere/trireme";
  const Outcome outcome = script.run();
  EXPECT_EQ(outcome.status, 127);
  EXPECT_THAT(outcome.err, HasSubstr("[0] error: cannot run /nowhere/trireme: No such file"));
}

TEST(Launch, AFailureStopsTheOthersAfterTheGracePeriod) {
  // Rank 1 would wait for ever, and does not listen to SIGTERM.
  Script script(2, "[ $RANK = 1 ] || exit 2; trap '' TERM; while :; do sleep 0.05; done");
  script.options.grace_s = 0.01;
  script.options.kill_s = 0.01;
  const Outcome outcome = script.run();
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err,
              HasSubstr("launch: rank 1 has not ended 0.01 s after rank 0 failed: it is stopped"));
}

TEST(Launch, OthersThatEndByThemselvesAreLeftAlone) {
  // Rank 1 ends when rank 0's end of the pipe is closed, as ranks do that lose a peer.
  const std::string fifo = testing::TempDir() + "trireme-launch-" + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  Script script(2,
                "if [ $RANK = 0 ]; then exec 3>" + fifo + "; exit 5; fi; cat " + fifo + "; exit 4");
  script.options.grace_s = 60;
  const Outcome outcome = script.run();
  ::unlink(fifo.c_str());
  EXPECT_EQ(outcome.status, 5);
  EXPECT_THAT(outcome.err, Not(HasSubstr("stopped")));
}

/// Runs a launcher in a process of its own; the ranks write a line to `ready` when they are.
struct Background {
  int ready = -1;
  pid_t pid = -1;

  explicit Background(const std::string& script, int ranks = 2) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    pid = ::fork();
    if (pid == 0) {
      ::close(ends[0]);
      Script launched(ranks, script);
      launched.options.out = ends[1];
      ::_exit(launch(launched.options));
    }
    ::close(ends[1]);
    ready = ends[0];
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  ~Background() { ::close(ready); }

  /// The next line that a rank wrote; "" at the end of all writers.
  std::string line() const {
    std::string text;
    for (char byte = 0; ::read(ready, &byte, 1) == 1 && byte != '\n';) text += byte;
    return text;
  }
  int status() const {
    int state = 0;
    ::waitpid(pid, &state, 0);
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
  }
};

TEST(Launch, SignalsArePassedOnAndWaitedFor) {
  for (const int number : {SIGINT, SIGTERM}) {
    const Background launched(
        "trap 'echo caught; exit 130' INT TERM; echo ready; while :; do sleep 0.01; done");
    EXPECT_THAT(launched.line(), HasSubstr("ready"));
    EXPECT_THAT(launched.line(), HasSubstr("ready"));
    ::kill(launched.pid, number);
    EXPECT_THAT(launched.line(), HasSubstr("caught"));
    EXPECT_THAT(launched.line(), HasSubstr("caught"));
    EXPECT_EQ(launched.status(), 130);
  }
}

TEST(Launch, ASecondSignalKills) {
  const Background launched("trap 'echo caught' INT; echo ready; while :; do sleep 0.01; done", 1);
  EXPECT_THAT(launched.line(), HasSubstr("ready"));
  ::kill(launched.pid, SIGINT);
  EXPECT_THAT(launched.line(), HasSubstr("caught"));
  ::kill(launched.pid, SIGINT);
  EXPECT_EQ(launched.status(), 130);
}

TEST(Launch, RanksDoNotOutliveAKilledLauncher) {
  const Background launched("echo ready $$; while :; do sleep 0.01; done");
  launched.line();
  launched.line();
  ::kill(launched.pid, SIGKILL);
  EXPECT_EQ(launched.status(), 128 + SIGKILL);
  // The pipe ends when its last writer has.
  EXPECT_EQ(launched.line(), "");
}

}  // namespace
}  // namespace trireme::resilience
