// A reader of the JSON that a compiled model carries. SPDX-License-Identifier: MIT
#pragma once
#include <cctype>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace nequip {

struct Json {
  enum Kind { null, boolean, number, string, array, object } kind = null;
  bool truth = false;
  double value = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json &operator[](const std::string &name) const {
    auto found = members.find(name);
    if (found == members.end()) throw std::runtime_error("its metadata have no \"" + name + "\"");
    return found->second;
  }
  bool has(const std::string &name) const { return members.count(name) != 0; }

  static Json parse(const std::string &source) {
    Reader reader{source, 0};
    Json result = reader.read();
    reader.space();
    if (reader.at != source.size()) reader.fail();
    return result;
  }

 private:
  struct Reader {
    const std::string &source;
    size_t at;

    [[noreturn]] void fail() const {
      throw std::runtime_error("its metadata are no JSON at character " + std::to_string(at));
    }
    char peek() const { return at < source.size() ? source[at] : '\0'; }
    void space() {
      while (at < source.size() && std::isspace((unsigned char) source[at])) ++at;
    }
    bool take(char c) {
      space();
      if (peek() != c) return false;
      ++at;
      return true;
    }
    void need(const char *word) {
      for (; *word; ++word, ++at)
        if (peek() != *word) fail();
    }

    Json read() {
      space();
      Json out;
      switch (peek()) {
        case '{':
          ++at;
          out.kind = object;
          if (take('}')) return out;
          do {
            space();
            std::string name = read_string();
            if (!take(':')) fail();
            out.members[name] = read();
          } while (take(','));
          if (!take('}')) fail();
          return out;
        case '[':
          ++at;
          out.kind = array;
          if (take(']')) return out;
          do out.items.push_back(read());
          while (take(','));
          if (!take(']')) fail();
          return out;
        case '"':
          out.kind = string;
          out.text = read_string();
          return out;
        case 't':
          need("true");
          out.kind = boolean;
          out.truth = true;
          return out;
        case 'f':
          need("false");
          out.kind = boolean;
          return out;
        case 'n':
          need("null");
          return out;
        default: {
          const char *begin = source.c_str() + at;
          char *end = nullptr;
          out.kind = number;
          out.value = std::strtod(begin, &end);
          if (end == begin) fail();
          at += end - begin;
          return out;
        }
      }
    }

    std::string read_string() {
      if (!take('"')) fail();
      std::string out;
      while (peek() != '"') {
        if (at >= source.size()) fail();
        char c = source[at++];
        if (c != '\\') {
          out += c;
          continue;
        }
        c = peek();
        ++at;
        switch (c) {
          case 'n': out += '\n'; break;
          case 't': out += '\t'; break;
          case 'r': out += '\r'; break;
          case 'b': out += '\b'; break;
          case 'f': out += '\f'; break;
          case 'u': out += read_unicode(); break;
          case '"': case '\\': case '/': out += c; break;
          default: fail();
        }
      }
      ++at;
      return out;
    }

    // One UTF-16 unit as UTF-8; surrogate pairs, which no name of ours holds, become two units.
    std::string read_unicode() {
      if (at + 4 > source.size()) fail();
      const unsigned long unit = std::strtoul(source.substr(at, 4).c_str(), nullptr, 16);
      at += 4;
      std::string out;
      if (unit < 0x80) {
        out += (char) unit;
      } else if (unit < 0x800) {
        out += (char) (0xC0 | unit >> 6);
        out += (char) (0x80 | (unit & 0x3F));
      } else {
        out += (char) (0xE0 | unit >> 12);
        out += (char) (0x80 | (unit >> 6 & 0x3F));
        out += (char) (0x80 | (unit & 0x3F));
      }
      return out;
    }
  };
};

}  // namespace nequip
